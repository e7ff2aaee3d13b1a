//! Whole jobs, with every actor below in place.

mod granted;
mod import;
mod pull;
mod registry;
