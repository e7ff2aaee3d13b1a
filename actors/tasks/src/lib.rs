//! The life of tasks and their processes; starts, finds again and reaps shims.
