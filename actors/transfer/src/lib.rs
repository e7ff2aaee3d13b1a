//! Images from archives, directories and registries.
