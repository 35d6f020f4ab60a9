//! One link that is up, and the capture that may run on it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::LabError;
use crate::agent::protocol::LinkStatus;
use crate::link::capture::{Capture, Source};
use crate::link::relay::Relay;
use crate::topology::{Endpoint, Impairment, LinkPlan};

/// How long the end of a capture waits, each way, for frames that a host has sent already.
const DRAIN: Duration = Duration::from_secs(1);

/// A link that is up.
#[derive(Debug)]
pub(super) struct Link {
    plan: LinkPlan,
    driver: &'static str,
    /// From a to b, from b to a; nobody's where the kernel carries the frames.
    relays: Option<[Relay; 2]>,
    capture: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    capture: Capture,
    file: PathBuf,
}

impl Link {
    /// A link that these relays carry.
    pub(super) fn relayed(plan: LinkPlan, driver: &'static str, relays: [Relay; 2]) -> Self {
        Self { plan, driver, relays: Some(relays), capture: Mutex::default() }
    }

    /// A link that the kernel carries.
    pub(super) fn kernel(plan: LinkPlan, driver: &'static str) -> Self {
        Self { plan, driver, relays: None, capture: Mutex::default() }
    }

    /// Its name in the plan.
    pub(super) fn name(&self) -> &str {
        &self.plan.name
    }

    /// Who carries it, and its counters. `dropped_by` tells what an end dropped before the relay had it.
    pub(super) fn status(&self, dropped_by: impl Fn(&Endpoint) -> Option<u64>) -> LinkStatus {
        let [mut a_to_b, mut b_to_a] =
            self.relays.as_ref().map(|relays| relays.each_ref().map(Relay::status)).unwrap_or_default();
        a_to_b.dropped += dropped_by(&self.plan.a).unwrap_or_default();
        b_to_a.dropped += dropped_by(&self.plan.b).unwrap_or_default();
        LinkStatus { name: self.plan.name.clone(), driver: self.driver.to_owned(), a_to_b, b_to_a }
    }

    /// Starts writing every frame that enters, either way, to `file`.
    pub(super) fn capture_start(&self, file: &Path) -> Result<(), LabError> {
        let name = &self.plan.name;
        let Some(relays) = &self.relays else {
            return Err(LabError::machine(format!(
                "link {name}: its driver is {}, whose frames the agent does not see; captures need \
                 `driver = \"relay\"` in the topology",
                self.driver
            )));
        };
        let mut running = self.running();
        if let Some(running) = &*running {
            let file = running.file.display();
            return Err(LabError::usage(format!(
                "link {name}: a capture runs already, to {file}; stop it first"
            )));
        }
        let LinkPlan { a, b, a_to_b, b_to_a, .. } = &self.plan;
        let sources = [self.source(a, b, a_to_b), self.source(b, a, b_to_a)];
        let capture = Capture::start(file, sources)
            .map_err(|e| LabError::operation(format!("link {name}: cannot write {}: {e}", file.display())))?;
        for (relay, sink) in relays.iter().zip(capture.sinks()) {
            relay.capture(Some(sink));
        }
        *running = Some(Running { capture, file: file.to_owned() });
        Ok(())
    }

    /// Ends the capture and flushes its file; returns frames written and frames lost.
    pub(super) fn capture_stop(&self) -> Result<(u64, u64), LabError> {
        let name = &self.plan.name;
        let Some(Running { capture, file }) = self.running().take() else {
            return Err(LabError::usage(format!("link {name}: no capture runs")));
        };
        // What the hosts have sent until now enters before the capture ends.
        let relays: Vec<_> =
            self.relays.iter().flatten().map(|relay| (relay, relay.ask_to_drain())).collect();
        for (relay, request) in relays {
            if !relay.drained(request, DRAIN) {
                tracing::warn!(link = name, "a host went on sending while the capture was ended");
            }
            relay.capture(None);
        }
        capture
            .stop()
            .map_err(|e| LabError::operation(format!("link {name}: cannot write {}: {e}", file.display())))
    }

    /// Asks its relays to end.
    pub(super) fn ask_to_stop(&self) {
        self.relays.iter().flatten().for_each(Relay::ask_to_stop);
    }

    /// Ends whatever runs on the link.
    pub(super) fn teardown(self) -> Result<(), LabError> {
        if self.running().is_some() { self.capture_stop().map(drop) } else { Ok(()) }
    }

    fn source(&self, from: &Endpoint, to: &Endpoint, impairment: &Impairment) -> Source {
        Source {
            name: from.to_string(),
            description: format!("link {}: frames from {from} to {to}, as they enter", self.plan.name),
            speed: impairment.rate,
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
