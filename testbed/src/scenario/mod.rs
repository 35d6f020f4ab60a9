//! Scenarios: load, select, run, observe.

pub mod body;
mod file;
mod observation;
pub mod wire;

pub use file::{
    Body, Client, DEFAULT_TIMEOUT, MAX_BODY, Placeholders, Program, Scenario, ScenarioError, Server,
};
pub use observation::{Connection, Exchange, Observation, Operation, Place, Region, Side};
