//! wip
mod area;
mod copy;
mod drivers;
mod trash;
mod walk;
