//! Runs one scenario in a lab that is up, through the agent's socket only, and observes it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdma_http::events;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::sync::watch;

use super::body::{self, Content};
use super::command::{Work, client_command, curl_exchanges, server_command};
use super::identity;
use super::program::{Program as Process, Told, tail};
use super::rounds::{RoundTrips, requests, round_trip};
use super::timeline::{Timeline, moments};
use super::wire::{self, Opening, WireError};
use super::{Claim, Fabrics, Observation, Place, Placeholders, Program, Scenario, Side};
use crate::agent::client::{Client, ClientError};
use crate::agent::protocol::Exit;
use crate::doctor::install_command;
use crate::guest::choice::Clock;
use crate::topology::{HostPlan, InterfacePlan, Plan};

/// How long it is waited for connections to end. Something else that runs in the same hosts may keep some open for ever.
const SETTLE: Duration = Duration::from_secs(2);

/// How long the server may take to end once it was asked to.
const STOP: Duration = Duration::from_secs(15);

/// A scenario that could not be run to its end: nothing can be said of what it would have shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// What went wrong.
    pub message: String,
    /// Whether a program that judges is not installed here: the machine's lack, not the system's.
    pub unavailable: bool,
    /// What the programs said, for finding out why: a heading and lines.
    pub logs: Vec<(String, String)>,
}

impl RunError {
    /// This machine lacks what it takes.
    pub fn unavailable(message: String) -> Self {
        Self { message, unavailable: true, logs: Vec::new() }
    }
}

/// Where and how scenarios are run.
#[derive(Clone, Copy, Debug)]
pub struct Runner<'a> {
    /// The lab's agent.
    pub client: &'a Client,
    /// The right to run there.
    pub claim: &'a Claim,
    /// What the lab was made from.
    pub plan: &'a Plan,
    /// What carries RDMA.
    pub fabrics: Fabrics,
    /// How the lab's clock goes.
    pub clock: Clock,
    /// Leaves the files of every run, in the lab's directory; else they are in the directory for temporary files.
    pub keep: bool,
    /// Becomes true when the run is to be broken off.
    pub cancelled: &'a watch::Receiver<bool>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{0}")]
    Said(String),
    #[error(transparent)]
    Agent(#[from] ClientError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{message}; to have it: {}", install_command(program))]
    Unavailable { program: &'static str, message: String },
    #[error("cannot {what}: {error}")]
    Io { what: String, error: io::Error },
}

pub(super) fn io_trouble(what: impl Into<String>) -> impl FnOnce(io::Error) -> Trouble {
    move |error| Trouble::Io { what: what.into(), error }
}

impl Runner<'_> {
    /// Runs a scenario. Bounded by the scenario's own timeout and what taking things down may take. To be broken off by
    /// [`cancelled`](Self::cancelled), not by dropping: a capture would go on in a lab that is left up.
    pub async fn run(&self, scenario: &Scenario) -> Result<Observation, RunError> {
        let (client_said, server_said) = (Told::default(), Told::default());
        let outcome = self.timed(scenario, &client_said, &server_said).await;
        outcome.map_err(|trouble| {
            let mut logs = Vec::new();
            for (name, told) in [(scenario.client.program.name(), &client_said), (HTTPD, &server_said)] {
                let text = tail(told);
                if !text.is_empty() {
                    logs.push((format!("{name} said"), text));
                }
            }
            let unavailable = matches!(trouble, Trouble::Unavailable { .. });
            RunError { message: trouble.to_string(), unavailable, logs }
        })
    }

    async fn timed(
        &self,
        scenario: &Scenario,
        client_said: &Told,
        server_said: &Told,
    ) -> Result<Observation, Trouble> {
        // The runtime directory is often a small file system in memory.
        let (folder, variable) = match self.keep {
            true => (self.client.lab().path().to_owned(), "TESTBED_RUNTIME_DIR"),
            false => (std::env::temp_dir(), "TMPDIR"),
        };
        let what = format!("make the run's files in {} ({variable} names another place)", folder.display());
        let folder = std::path::absolute(folder).map_err(io_trouble(what.clone()))?;
        let kept = tempfile::Builder::new()
            .prefix(&format!("run-{}-", scenario.name))
            .tempdir_in(folder)
            .map_err(io_trouble(what.clone()))?;
        let work = Work { folder: kept.path().to_owned() };
        let outcome = self.captured(scenario, &work, &what, client_said, server_said).await;
        self.put_away(kept);
        outcome
    }

    fn put_away(&self, kept: TempDir) {
        if self.keep {
            let _ = kept.keep();
        } else if let Err(error) = kept.close() {
            // Whoever takes the lab down clears it.
            tracing::warn!("cannot remove a run's files: {error}");
        }
    }

    async fn captured(
        &self,
        scenario: &Scenario,
        work: &Work,
        making: &str,
        client_said: &Told,
        server_said: &Told,
    ) -> Result<Observation, Trouble> {
        let place = Surroundings::new(self.plan, scenario)?;
        if self.clock == Clock::Virtual {
            in_step().await;
        }
        let served = make_bodies(scenario, work, making).await?;
        if scenario.server.tls {
            let (certificate, key) = work.identity();
            identity::make(place.server, &certificate, &key).map_err(io_trouble("make a certificate"))?;
        }
        let noting = "note in the lab's directory which link is captured";
        self.claim.captures(&place.link).map_err(io_trouble(noting))?;
        let started = self.client.capture_start(&place.link, &work.capture()).await;
        if started.is_err() {
            // It is somebody else's, who wants to keep it.
            self.claim.captures("").map_err(io_trouble(noting))?;
        }
        started?;
        let flow = self.flow(scenario, work, &place, client_said, server_said);
        let mut cancelled = self.cancelled.clone();
        let flowed = tokio::select! {
            flowed = tokio::time::timeout(scenario.timeout, flow) => flowed,
            Ok(_) = cancelled.wait_for(|cancelled| *cancelled) => Ok(Err(Trouble::Said("interrupted".to_owned()))),
        };
        // What the kernels still say for programs that have ended belongs to the observation.
        let settled = match &flowed {
            Ok(Ok(_)) => self.settle(&[&scenario.client.host, &scenario.server.host]).await,
            _ => Ok(()),
        };
        // The programs have ended, or have just been dropped and so killed; the capture must end in any case.
        let (frames, dropped) = self.client.capture_stop(&place.link).await?;
        self.claim.captures("").map_err(io_trouble(noting))?;
        let sides = flowed.unwrap_or_else(|_| {
            let limit = scenario.timeout.as_secs_f64();
            Err(Trouble::Said(format!("it was not over after {limit} s, the scenario's timeout")))
        })?;
        settled?;
        if dropped > 0 {
            let lost = format!("the capture lost {dropped} frames and holds {frames}: the disk is too slow");
            return Err(Trouble::Said(lost));
        }
        let capture = work.capture();
        let outputs: Vec<PathBuf> = match &scenario.client.upload {
            // Where the client gets nothing, the server does.
            Some(_) => vec![work.root().join(scenario.client.target.trim_start_matches('/'))],
            None => (0..scenario.client.requests).map(|request| work.output(request)).collect(),
        };
        let expected = served.clone();
        let secret = scenario.server.tls.then(|| work.body(scenario));
        let decoded = tokio::task::spawn_blocking(move || {
            let mut arrived = outputs.iter().map(|output| body::read(output));
            // All are the same, or the first that is not is shown.
            let first = arrived.next().unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
            let is_wrong = |content: &io::Result<Content>| content.as_ref().ok() != expected.as_ref();
            let shown = if is_wrong(&first) { first } else { arrived.find(is_wrong).unwrap_or(first) };
            let wire = wire::decode(&capture).map_err(Trouble::from).and_then(|mut wire| {
                if let Some(body) = secret {
                    let blocks = wire::Blocks::of(&body).map_err(io_trouble("read the body"))?;
                    wire.exposed = Some(wire::exposed(&capture, &blocks)?);
                }
                Ok(wire)
            });
            (wire, shown)
        });
        let (wire, arrived) = decoded.await.map_err(|error| Trouble::Said(error.to_string()))?;
        let arrived = match arrived {
            Ok(content) => Some(content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_trouble("read what arrived")(error)),
        };
        let Sides { client, server, timeline } = sides;
        let mut wire = wire?;
        // What was open before the programs started is not theirs: the last segments of an earlier scenario's.
        wire.connections.retain(|connection| connection.opening != Opening::Unseen);
        Ok(Observation {
            scenario: scenario.name.clone(),
            fabrics: self.fabrics,
            place: Place { addresses: place.addresses, work: work.folder.clone() },
            client,
            server,
            served,
            arrived,
            wire,
            timeline,
            clock: self.clock,
        })
    }

    /// Waits until the kernels have closed what the programs left: only then have all segments entered the link.
    async fn settle(&self, hosts: &[&str]) -> Result<(), ClientError> {
        if !self.client.settled(hosts, SETTLE).await? {
            tracing::warn!("connections are still open {} s after their programs ended", SETTLE.as_secs());
        }
        Ok(())
    }

    async fn flow(
        &self,
        scenario: &Scenario,
        work: &Work,
        place: &Surroundings,
        client_said: &Told,
        server_said: &Told,
    ) -> Result<Sides, Trouble> {
        let command = server_command(scenario, self.fabrics.server, work, place);
        let mut server = Process::start(self.client, HTTPD, command, true, server_said.clone()).await?;
        let Some(address) = server.listening().await else {
            let exit = server.ended().await?;
            return Err(Trouble::Said(format!("{HTTPD} {} before it listened", ended(exit))));
        };
        let program = scenario.client.program;
        let command = client_command(scenario, self.fabrics.client, work, place, address);
        let events = program == Program::RdmaFetch;
        let start_us = events::now_us();
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let client = Process::start(self.client, program.name(), command, events, client_said.clone()).await;
        let mut client = client.map_err(|error| match error {
            ClientError::NotExecuted { code: 127, message } if program == Program::Curl => {
                Trouble::Unavailable { program: program.name(), message }
            }
            error => error.into(),
        })?;
        let exit = tokio::select! {
            exit = client.ended() => exit?,
            exit = server.ended() => {
                let what = format!("{HTTPD} {} while it was needed", ended(exit?));
                return Err(Trouble::Said(what));
            }
        };
        let records = client.records().await.map_err(Trouble::Said)?;
        let mut timeline = Timeline { start, client: moments(&records, start_us), ..Timeline::default() };
        if scenario.round_trips {
            let (one, other) = (&scenario.client.host, &scenario.server.host);
            let trip = round_trip(self.plan, one, other);
            timeline.round_trips = trip.map(|one| RoundTrips { one, requests: requests(&records) });
        }
        let mut client = Side::new(program.name(), Some(exit), &records);
        if program == Program::Curl {
            client.exchanges = curl_exchanges(&work.heads())?;
        }
        server.terminate().await;
        let Ok(exit) = tokio::time::timeout(STOP, server.ended()).await else {
            let seconds = STOP.as_secs();
            return Err(Trouble::Said(format!("{HTTPD} did not end within {seconds} s of being asked to")));
        };
        let records = server.records().await.map_err(Trouble::Said)?;
        timeline.server = moments(&records, start_us);
        timeline.took = Duration::from_micros(events::now_us().saturating_sub(start_us));
        Ok(Sides { client, server: Side::new(HTTPD, Some(exit?), &records), timeline })
    }
}

/// Waits, on a virtual clock, for the next time at which the kernel's slow timers are as they are at all such times. They
/// expire in steps: of 10 ms each, and by 8 and by 64 of those the further off they are (Linux, `kernel/time/timer.c`,
/// HZ = 100). So what a timer is rounded to depends on when it was set.
async fn in_step() {
    /// A multiple of all steps of timers up to some 40 s.
    const STEP_US: u64 = 40_960_000;
    /// From there, so that no scenario's 5 ms are at the edge of a step.
    const PHASE_US: u64 = 3_000;
    let now = events::now_us();
    let left = STEP_US - now % STEP_US + PHASE_US;
    // By a thread: tokio's timers have steps of their own.
    let slept = tokio::task::spawn_blocking(move || std::thread::sleep(Duration::from_micros(left)));
    // It can only be that the runtime ends.
    let _ = slept.await;
}

pub(super) const HTTPD: &str = "rdma-httpd";

struct Sides {
    client: Side,
    server: Side,
    timeline: Timeline,
}

/// What a scenario needs to know of the topology.
pub(super) struct Surroundings {
    addresses: BTreeMap<IpAddr, String>,
    pub(super) server: IpAddr,
    pub(super) placeholders: Placeholders,
    /// The link whose frames are captured: the client's first.
    link: String,
}

impl Surroundings {
    fn new(plan: &Plan, scenario: &Scenario) -> Result<Self, Trouble> {
        let (_, server) = first_interface(plan, &scenario.server.host)?;
        let (client_host, client) = first_interface(plan, &scenario.client.host)?;
        let mut addresses = BTreeMap::new();
        for host in &plan.hosts {
            for (index, interface) in host.interfaces.iter().enumerate() {
                let name = match index {
                    0 => host.name.clone(),
                    _ => format!("{}/{}", host.name, interface.name),
                };
                addresses.insert(interface.address.addr(), name);
            }
        }
        let mut free = client.address.trunc().hosts().rev();
        let nobody = free.find(|ip| !addresses.contains_key(ip)).ok_or_else(|| {
            Trouble::Said(format!("every address of {} is taken: none is left for nobody", client.address))
        })?;
        addresses.insert(nobody, "nobody".to_owned());
        let mut links = plan.links.iter();
        let is_clients =
            |end: &crate::topology::Endpoint| end.host == client_host.name && end.interface == client.name;
        let link = links.find(|link| is_clients(&link.a) || is_clients(&link.b)).ok_or_else(|| {
            Trouble::Said(format!("{}:{} is at the end of no link", client_host.name, client.name))
        })?;
        let (server, client) = (server.address.addr(), client.address.addr());
        let placeholders = Placeholders::new(server.to_string(), client.to_string(), nobody.to_string());
        Ok(Self { addresses, server, placeholders, link: link.name.clone() })
    }
}

fn first_interface<'p>(plan: &'p Plan, host: &str) -> Result<(&'p HostPlan, &'p InterfacePlan), Trouble> {
    let found = plan.hosts.iter().find(|known| known.name == host);
    let interface = found.and_then(|host| Some((host, host.interfaces.first()?)));
    interface.ok_or_else(|| Trouble::Said(format!("the lab has no host {host:?} with an interface")))
}

/// Makes the server's files, and the client's; returns what shall arrive: what the client sends, or asks for and the server
/// has.
async fn make_bodies(scenario: &Scenario, work: &Work, making: &str) -> Result<Option<Content>, Trouble> {
    let (root, folder) = (work.root(), work.folder.clone());
    let (files, target) = (scenario.server.files.clone(), scenario.client.target.clone());
    let upload = scenario.client.upload.clone();
    let made = tokio::task::spawn_blocking(move || {
        fs::create_dir_all(&root)?;
        let mut served = None;
        for file in files {
            let content = body::write(&root.join(&file.path), file.size, file.seed)?;
            if Path::new(target.trim_start_matches('/')) == file.path {
                served = Some(content);
            }
        }
        match upload {
            Some(file) => body::write(&folder.join(&file.path), file.size, file.seed).map(Some),
            None => Ok(served),
        }
    });
    let made = made.await.map_err(|error| Trouble::Said(error.to_string()))?;
    made.map_err(io_trouble(making))
}

fn ended(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("ended with exit code {code}"),
        Exit::Signal(signal) => format!("was killed by signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(change: impl FnOnce(&mut Plan)) -> Result<Surroundings, Trouble> {
        let mut plan = crate::topology::load("wan-10g").unwrap();
        change(&mut plan);
        let text = "description = \"x\"\n[server]\n[client]\ntarget = \"/x\"\n";
        Surroundings::new(&plan, &Scenario::parse(Path::new("get-x.toml"), text).unwrap())
    }

    #[test]
    fn nobody_has_the_last_address_of_the_subnet_that_is_free() {
        let there = surroundings(|_| {}).unwrap();
        assert_eq!(there.placeholders.fill("{server} {client} {nobody}"), "10.10.0.1 10.10.0.2 10.10.0.254");
        assert_eq!(there.link, "wan");
        assert_eq!(there.addresses[&"10.10.0.254".parse().unwrap()], "nobody");
        let taken = |plan: &mut Plan| {
            plan.hosts[0].interfaces[0].address = "10.10.0.254/24".parse().unwrap();
        };
        assert_eq!(surroundings(taken).unwrap().placeholders.fill("{nobody}"), "10.10.0.253");
    }

    #[test]
    fn a_subnet_without_a_free_address_and_a_host_without_an_interface_are_said() {
        let full = |plan: &mut Plan| {
            plan.hosts[0].interfaces[0].address = "10.10.0.1/30".parse().unwrap();
            plan.hosts[1].interfaces[0].address = "10.10.0.2/30".parse().unwrap();
        };
        assert!(surroundings(full).err().unwrap().to_string().contains("none is left for nobody"));
        let bare = |plan: &mut Plan| plan.hosts[0].interfaces.clear();
        assert!(surroundings(bare).err().unwrap().to_string().contains("no host"));
    }
}
