//! The drivers' directories: layers, writable roots, views.
