//! OCI runtime specs and the drivers that run them.
