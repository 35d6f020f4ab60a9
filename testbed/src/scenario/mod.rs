//! Scenarios: load, select, run, observe.
//!
//! A scenario is a file in `golden/`: who serves what, who asks for it and how. The runner uses the agent's socket only. For
//! a lab on this machine it runs here, for a lab in a guest it runs in the guest beside the agent ([`Guests`]).

pub mod body;
#[cfg(test)]
mod cells;
mod claim;
mod command;
mod embedded;
mod error;
mod fabrics;
mod file;
mod guest;
mod identity;
mod library;
mod observation;
mod placeholders;
mod program;
mod rounds;
mod run;
mod select;
mod timeline;
pub mod wire;

pub use claim::Claim;
pub use error::ScenarioError;
pub use fabrics::Fabrics;
pub use file::{Body, Client, DEFAULT_TIMEOUT, MAX_BODY, Program, Scenario, Server};
pub use guest::{Guests, Observed, Question};
pub use library::{Library, LibraryError};
pub use observation::{Connection, Exchange, Observation, Operation, Place, Region, Side};
pub use placeholders::Placeholders;
pub use rounds::{Request, RoundTrips};
pub use run::{RunError, Runner};
pub use select::{Partition, PartitionBy, Pattern, SelectError, select};
#[cfg(test)]
pub(crate) use timeline::moments;
pub use timeline::{Moment, Timeline};
