//! A file -> a checked [`Topology`] -> a [`Plan`].

mod plan;

pub use plan::*;
