//! Every table of meta.redb, and the one writer.
