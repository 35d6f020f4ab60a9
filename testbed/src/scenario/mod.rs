//! Scenarios: load, select, run, observe.
//!
//! A scenario is a file in `golden/`: who serves what, who asks for it and how. The runner lives outside the lab and uses
//! its agent's socket only, so that the same works in guests.

pub mod body;
mod claim;
mod embedded;
mod file;
mod library;
mod observation;
mod program;
mod run;
mod select;
mod settle;
pub mod wire;

pub use claim::Claim;
pub use file::{
    Body, Client, DEFAULT_TIMEOUT, MAX_BODY, Placeholders, Program, Scenario, ScenarioError, Server,
};
pub use library::{Library, LibraryError};
pub use observation::{Connection, Exchange, Observation, Operation, Place, Region, Side};
pub use run::{RunError, Runner};
pub use select::{Partition, PartitionBy, Pattern, SelectError, select};
