//! One link that is up, and the capture that may run on it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::LabError;
use super::netlink::Netlink;
use super::{RelayDevice, build};
use crate::agent::protocol::{DirectionChange, LinkStatus};
use crate::link::capture::{Capture, Source};
use crate::link::relay::Relay;
use crate::link::{may_offload, netem};
use crate::topology::{Endpoint, Impairment, LinkPlan, Plan};

/// How long the end of a capture waits, each way, for frames that a host has sent already.
const DRAIN: Duration = Duration::from_secs(1);

/// A link that is up.
#[derive(Debug)]
pub(super) struct Link {
    plan: LinkPlan,
    carrier: Carrier,
    now: Arc<Now>,
    capture: Mutex<Option<Running>>,
}

#[derive(Debug)]
enum Carrier {
    /// Relays from a to b and from b to a.
    Relay(RelayDevice, [Relay; 2]),
    Netem,
    Veth,
}

/// What a link does now.
#[derive(Debug, Default)]
struct Now {
    directions: Mutex<[Direction; 2]>,
    /// One change after another.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct Direction {
    does: Impairment,
    cut: bool,
}

impl Now {
    fn directions(&self) -> MutexGuard<'_, [Direction; 2]> {
        self.directions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Running {
    capture: Capture,
    file: PathBuf,
}

impl Link {
    /// A link that these relays carry.
    pub(super) fn relayed(plan: LinkPlan, device: RelayDevice, relays: [Relay; 2]) -> Self {
        Self::new(plan, Carrier::Relay(device, relays))
    }

    /// A link of the kernel's with netem on both ends.
    pub(super) fn netem(plan: LinkPlan) -> Self {
        Self::new(plan, Carrier::Netem)
    }

    /// A bare veth pair.
    pub(super) fn veth(plan: LinkPlan) -> Self {
        Self::new(plan, Carrier::Veth)
    }

    fn new(plan: LinkPlan, carrier: Carrier) -> Self {
        let now = Now::default();
        *now.directions() =
            [&plan.a_to_b, &plan.b_to_a].map(|does| Direction { does: does.clone(), cut: false });
        Self { plan, carrier, now: Arc::new(now), capture: Mutex::default() }
    }

    /// Its name in the plan.
    pub(super) fn name(&self) -> &str {
        &self.plan.name
    }

    fn driver(&self) -> &'static str {
        match self.carrier {
            Carrier::Relay(RelayDevice::Tap, _) => "relay over TAP",
            Carrier::Relay(RelayDevice::Packet, _) => "relay over AF_PACKET",
            Carrier::Netem => "netem",
            Carrier::Veth => "veth",
        }
    }

    fn relays(&self) -> Option<&[Relay; 2]> {
        match &self.carrier {
            Carrier::Relay(_, relays) => Some(relays),
            Carrier::Netem | Carrier::Veth => None,
        }
    }

    /// Who carries it, what it does and its counters. `dropped_by` tells what an end dropped before the relay had it.
    pub(super) fn status(&self, dropped_by: impl Fn(&Endpoint) -> Option<u64>) -> LinkStatus {
        let [mut a_to_b, mut b_to_a] =
            self.relays().map(|relays| relays.each_ref().map(Relay::status)).unwrap_or_default();
        for (status, now) in [&mut a_to_b, &mut b_to_a].into_iter().zip(self.now.directions().iter()) {
            (status.does, status.cut) = (now.does.clone(), now.cut);
        }
        a_to_b.dropped += dropped_by(&self.plan.a).unwrap_or_default();
        b_to_a.dropped += dropped_by(&self.plan.b).unwrap_or_default();
        LinkStatus { name: self.plan.name.clone(), driver: self.driver().to_owned(), a_to_b, b_to_a }
    }

    /// Changes what it does; the future has the part that the kernel does. `netlink` is that of an end's host.
    pub(super) fn change(
        &self,
        plan: &Plan,
        changes: [DirectionChange; 2],
        netlink: &dyn Fn(&Endpoint) -> Option<Netlink>,
    ) -> Result<impl Future<Output = Result<(), LabError>> + Send + use<>, LabError> {
        let LinkPlan { name, a, b, .. } = &self.plan;
        if matches!(self.carrier, Carrier::Veth) {
            return Err(LabError::usage(format!(
                "link {name}: a bare veth pair impairs nothing; use `driver = \"relay\"` in the topology"
            )));
        }
        for (change, from) in changes.iter().zip([a, b]) {
            change.does.iter().try_for_each(|does| build::check_impairment(name, from, does))?;
        }
        let before = self.now.directions().clone();
        let (mut orders, mut after) = (Vec::new(), Vec::new());
        for (n, (change, end)) in changes.into_iter().zip([a, b]).enumerate() {
            if change == DirectionChange::default() {
                continue;
            }
            let does = change.does.unwrap_or_else(|| before[n].does.clone());
            let cut = change.cut.unwrap_or(before[n].cut);
            after.push((n, Direction { does: does.clone(), cut }));
            let order = match &self.carrier {
                Carrier::Relay(device, relays) => {
                    relays[n].change(does.clone(), cut);
                    // Room for super-frames was made, or was not, when the link was.
                    let ours = *device == RelayDevice::Packet && may_offload(self.at_first(n));
                    ours.then(|| Order::Offload(may_offload(&does)))
                }
                Carrier::Netem => {
                    // Everything is lost on a link that is cut.
                    let loss = if cut { 1.0 } else { does.loss };
                    Some(Order::Netem(Impairment { loss, ..does }, build::seed(name, end)))
                }
                Carrier::Veth => None,
            };
            orders.extend(order.map(|order| (order, end.clone(), plan.mtu(end), netlink(end))));
        }
        let (now, place) = (Arc::clone(&self.now), format!("link {name}"));
        Ok(async move {
            let _one = now.changing.lock().await;
            for (order, end, mtu, netlink) in orders {
                let Some(netlink) = netlink else { continue };
                let carried_out = order.carry_out(&netlink, &end.interface, mtu).await;
                carried_out.map_err(|e| LabError::step(format!("{place}, {end}"), "change it", e))?;
            }
            after.into_iter().for_each(|(n, direction)| now.directions()[n] = direction);
            Ok(())
        })
    }

    /// What a direction did at first.
    fn at_first(&self, direction: usize) -> &Impairment {
        if direction == 0 { &self.plan.a_to_b } else { &self.plan.b_to_a }
    }

    /// Starts writing every frame that enters, either way, to `file`.
    pub(super) fn capture_start(&self, file: &Path) -> Result<(), LabError> {
        let name = &self.plan.name;
        let Some(relays) = self.relays() else {
            return Err(LabError::machine(format!(
                "link {name}: its driver is {}, whose frames the agent does not see; captures need \
                 `driver = \"relay\"` in the topology",
                self.driver()
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
            self.relays().into_iter().flatten().map(|relay| (relay, relay.ask_to_drain())).collect();
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
        self.relays().into_iter().flatten().for_each(Relay::ask_to_stop);
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

/// What the kernel is to do about an end of a link.
#[derive(Debug)]
enum Order {
    Offload(bool),
    Netem(Impairment, u64),
}

impl Order {
    async fn carry_out(&self, netlink: &Netlink, interface: &str, mtu: u32) -> io::Result<()> {
        let index = netlink.index(interface).await?;
        match self {
            Self::Offload(offload) => netlink.offload(index, *offload).await,
            Self::Netem(does, seed) => {
                netlink.set_qdisc(netem::message(index, does, mtu, *seed, true), true).await
            }
        }
    }
}
