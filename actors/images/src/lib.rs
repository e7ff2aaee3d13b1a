//! wip
mod document;
mod json;
