//! Layer archives: applying a tar to a directory, confined to its root.
