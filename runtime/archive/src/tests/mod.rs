//! Tests of the whole: as root, on the real kernel, each in a directory of its own with a canary beside the root.

mod confined;
mod interop;
mod layers;
mod limits;
mod many;
mod refused;
mod root_path;
mod support;
mod writers;
