//! Whole jobs, with every actor below in place.

mod import;
mod pull;
mod registry;
