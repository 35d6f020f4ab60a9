//! One call of `testbed run`, once it is known what is to be run and where.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use rdma_http::fabric::FabricKind;
use tokio::sync::watch;

use super::interrupts::Interrupts;
use super::matrix::Job;
use super::{Args, Missing, Reporters};
use crate::agent::client::Client;
use crate::agent::protocol::Blame;
use crate::agent::runtime::LabName;
use crate::cli::{Code, Failure, Outcome, remark};
use crate::golden::Store;
use crate::guest::choice::{Clock, Place};
use crate::guest::host::{self, Lease, Options, Up, UpError};
use crate::guest::machine::Machine;
use crate::report::{self, Event, Finding, Start, Summary};
use crate::scenario::{Claim, Guests, Library, Observation, Question, RunError, Runner};
use crate::topology::Plan;

/// Exit code of a program that a signal ended, as shells have it.
const SIGNALLED: u8 = 128;
/// A guest's memory in MiB: a body of 64 MiB in files and in registered memory at both ends, on the wire and in the
/// capture, several times over. What is not used is not taken from the machine.
const MEMORY: u32 = 1536;

/// One call of `testbed run`.
pub(super) struct Session<'a> {
    pub(super) args: &'a Args,
    pub(super) plan: &'a Plan,
    pub(super) library: &'a Library,
    pub(super) place: &'a Place,
    pub(super) fabrics: &'a [FabricKind],
    pub(super) missing: &'a Missing,
    pub(super) jobs: &'a [Job<'a>],
    pub(super) skipped: usize,
}

/// The lab that a run uses on this machine's kernel.
struct Lab {
    client: Client,
    claim: Claim,
    /// Holds it up, if this run brought it up.
    lease: Option<Lease>,
}

/// What was found so far, and who is told of it.
struct Findings {
    reporters: Reporters,
    summary: Summary,
}

impl Findings {
    fn add(
        &mut self,
        job: &Job<'_>,
        elapsed: Duration,
        simulated: Option<Duration>,
        outcome: report::Outcome,
    ) -> Result<(), Failure> {
        let finding = Finding {
            name: job.scenario.name.clone(),
            fabrics: job.fabrics,
            file: job.scenario.file.clone(),
            elapsed,
            simulated,
            outcome,
        };
        self.summary.add(&finding);
        self.reporters.tell(&Event::ScenarioFinished(&finding))
    }

    fn begin(&mut self, job: &Job<'_>) -> Result<(), Failure> {
        let (name, fabrics) = (&job.scenario.name, job.fabrics);
        self.reporters.tell(&Event::ScenarioStarted { name, fabrics })
    }
}

impl Session<'_> {
    pub(super) async fn run(&self, reporters: Reporters) -> Outcome {
        let mut interrupts = Interrupts::new()?;
        let begun = Instant::now();
        let mut findings = Findings { reporters, summary: Summary::default() };
        let (cancel, cancelled) = watch::channel(false);
        let ran = {
            let mut running = pin!(self.everything(&cancelled, &mut findings));
            tokio::select! {
                ran = &mut running => ran.map(|()| None),
                signal = interrupts.next() => {
                    // What is under way winds up, unless it is asked for twice.
                    cancel.send_replace(true);
                    tokio::select! {
                        ran = &mut running => ran.map(|()| Some(signal)),
                        signal = interrupts.next() => Ok(Some(signal)),
                    }
                }
            }
        };
        let Findings { mut reporters, mut summary } = findings;
        summary.elapsed = begun.elapsed();
        summary.interrupted = !matches!(ran, Ok(None));
        // What kept everything from running is said by itself.
        if ran.is_err() && summary.run() + summary.skipped == 0 {
            ran?;
            return Ok(ExitCode::SUCCESS);
        }
        let told = reporters.tell(&Event::Finished(&summary));
        let signal = ran?;
        told?;
        Ok(match signal {
            Some(signal) => ExitCode::from(SIGNALLED + signal),
            None if summary.is_good() && summary.run() == 0 => {
                return Err(Failure::new(Code::NothingRun, "every scenario was skipped"));
            }
            None if summary.is_good() => ExitCode::SUCCESS,
            None => Code::Differs.into(),
        })
    }

    async fn everything(
        &self,
        cancelled: &watch::Receiver<bool>,
        findings: &mut Findings,
    ) -> Result<(), Failure> {
        let Some(machine) = Machine::of(self.place, self.args.clock) else {
            return self.here(cancelled, findings).await;
        };
        let guests = Guests {
            machine,
            program: Options::new()?.program,
            memory: MEMORY,
            timeout: self.args.up_timeout,
        };
        self.in_guests(&guests, cancelled, findings).await
    }

    fn started(&self, lab: Option<&LabName>) -> Start {
        let clock = match self.args.clock {
            Clock::Wall => "wall",
            Clock::Virtual => "virtual",
        };
        Start {
            topology: self.plan.name.clone(),
            fabrics: self.fabrics.to_owned(),
            kernel: self.place.name().to_owned(),
            clock: clock.to_owned(),
            lab: lab.map(LabName::to_string),
            scenarios: self.jobs.len(),
            skipped: self.skipped,
        }
    }

    /// On this machine's kernel: a lab for each device that is needed, one scenario after the other.
    async fn here(&self, cancelled: &watch::Receiver<bool>, findings: &mut Findings) -> Result<(), Failure> {
        let mut started = false;
        for jobs in self.jobs.chunk_by(|a, b| a.fabrics.device() == b.fabrics.device()) {
            let device = jobs.first().map_or(FabricKind::Soft, |job| job.fabrics.device());
            let plan = with_devices(self.plan, device);
            let mut interrupted = cancelled.clone();
            if let Some((_, why)) = self.missing.iter().find(|(fabric, _)| *fabric == device) {
                self.lacking(jobs, why, &mut started, findings)?;
                continue;
            }
            let lab = tokio::select! {
                lab = self.lab(&plan) => lab,
                // Dropping it half-way is fine: the agent ends with the connection of whoever started it.
                Ok(_) = interrupted.wait_for(|cancelled| *cancelled) => return Ok(()),
            };
            let lab = match lab {
                Ok(lab) => lab,
                Err(UpError::Failed { message, blame: Blame::Machine }) if device != FabricKind::Soft => {
                    self.lacking(jobs, &message, &mut started, findings)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let told = match std::mem::replace(&mut started, true) {
                false => {
                    findings.reporters.tell(&Event::Started(&self.started(Some(lab.client.lab().name()))))
                }
                true => Ok(()),
            };
            let ran = match told {
                Ok(()) => self.in_lab(jobs, &plan, &lab, cancelled, findings).await,
                Err(failure) => Err(failure),
            };
            let down = self.leave(lab).await;
            ran?;
            down?;
            if *cancelled.borrow() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What there is no lab for.
    fn lacking(
        &self,
        jobs: &[Job<'_>],
        why: &str,
        started: &mut bool,
        findings: &mut Findings,
    ) -> Result<(), Failure> {
        if !std::mem::replace(started, true) {
            findings.reporters.tell(&Event::Started(&self.started(None)))?;
        }
        for job in jobs {
            findings.begin(job)?;
            findings.add(job, Duration::ZERO, None, lacking(RunError::unavailable(why.to_owned())))?;
        }
        Ok(())
    }

    /// The lab of the topology's name if it is up as the topology says; else a new one, of a name that no other run has.
    async fn lab(&self, plan: &Plan) -> Result<Lab, UpError> {
        let options = Options { timeout: self.args.up_timeout, ..Options::new()? };
        let usual: LabName = plan.name.parse()?;
        let client = Client::new(options.runtime.lab(&usual));
        if let Ok(status) = client.status().await
            && status.plan == *plan
        {
            let claim = claim(&client).await?;
            return Ok(Lab { client, claim, lease: None });
        }
        let name = if self.args.keep { usual } else { format!("run-{}", std::process::id()).parse()? };
        let Up { client, lease, .. } = host::up(&name, plan, &options).await?;
        let claim = claim(&client).await?;
        Ok(Lab { client, claim, lease })
    }

    /// Takes the lab down if it is ours, unless it is to be kept.
    async fn leave(&self, lab: Lab) -> Result<(), Failure> {
        let Some(lease) = lab.lease else { return Ok(()) };
        if self.args.keep {
            let kept = lease.release().await;
            return kept.map_err(|error| Failure::new(Code::Differs, format!("the lab is gone: {error}")));
        }
        host::down(lab.client.lab(), self.args.up_timeout).await?;
        Ok(())
    }

    async fn in_lab(
        &self,
        jobs: &[Job<'_>],
        plan: &Plan,
        lab: &Lab,
        cancelled: &watch::Receiver<bool>,
        findings: &mut Findings,
    ) -> Result<(), Failure> {
        for job in jobs {
            findings.begin(job)?;
            let begun = Instant::now();
            let runner = Runner {
                client: &lab.client,
                claim: &lab.claim,
                plan,
                fabrics: job.fabrics,
                clock: Clock::Wall,
                keep: self.args.keep,
                cancelled,
            };
            let seen = runner.run(job.scenario).await;
            let outcome = self.judge(job, seen)?;
            if *cancelled.borrow() {
                break;
            }
            findings.add(job, begun.elapsed(), None, outcome)?;
        }
        Ok(())
    }

    /// In guests, several at once where that changes nothing. What has no place at all was refused before.
    async fn in_guests(
        &self,
        guests: &Guests,
        cancelled: &watch::Receiver<bool>,
        findings: &mut Findings,
    ) -> Result<(), Failure> {
        findings.reporters.tell(&Event::Started(&self.started(None)))?;
        let at_once = match self.args.jobs {
            Some(jobs) => jobs.get(),
            None if self.args.clock == Clock::Wall => 1,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        // Each of those that run at once has a processor of its own.
        let places = if at_once > 1 { processors(at_once) } else { vec![None] };
        let free = Mutex::new(places);
        let lock = || free.lock().unwrap_or_else(PoisonError::into_inner);
        let run = async |number: usize| {
            let job = &self.jobs[number];
            let begun = Instant::now();
            let cpu = lock().pop().flatten();
            let question = Question {
                scenario: job.scenario.clone(),
                plan: with_devices(self.plan, job.fabrics.device()),
                fabrics: job.fabrics,
                clock: self.args.clock,
            };
            let seen = guests.run(&question, cpu).await;
            lock().push(cpu);
            (number, begun.elapsed(), seen)
        };
        let mut order: Vec<usize> = (0..self.jobs.len()).collect();
        if at_once > 1 {
            // So that the last one to end is no long one that began last.
            order.sort_by_key(|number| Reverse(self.jobs[*number].cost()));
        }
        let mut all = pin!(stream::iter(order).map(run).buffer_unordered(at_once));
        let mut interrupted = cancelled.clone();
        // What has ended, and waits for its turn: whatever ends first, it is told of in the order of the jobs.
        let mut ended = BTreeMap::new();
        let told = |number: usize, elapsed, seen: Result<Observation, RunError>, findings: &mut Findings| {
            let job = &self.jobs[number];
            let took = seen.as_ref().ok().map(|seen| seen.timeline.took);
            let simulated = took.filter(|_| self.args.clock == Clock::Virtual);
            findings.add(job, elapsed, simulated, self.judge(job, seen)?)
        };
        'jobs: for (number, job) in self.jobs.iter().enumerate() {
            findings.begin(job)?;
            let (elapsed, seen) = loop {
                if let Some(one) = ended.remove(&number) {
                    break one;
                }
                let next = tokio::select! {
                    next = all.next() => next,
                    Ok(_) = interrupted.wait_for(|cancelled| *cancelled) => None,
                };
                let Some((number, elapsed, seen)) = next else { break 'jobs };
                ended.insert(number, (elapsed, seen));
            };
            told(number, elapsed, seen, findings)?;
        }
        // Only where it was interrupted is anything left.
        for (number, (elapsed, seen)) in ended {
            told(number, elapsed, seen, findings)?;
        }
        Ok(())
    }

    fn judge(&self, job: &Job<'_>, seen: Result<Observation, RunError>) -> Result<report::Outcome, Failure> {
        let observation = match seen {
            Ok(observation) => observation,
            Err(error) => return Ok(lacking(error)),
        };
        let violations = observation.violations();
        let mut store = Store::new(self.library.folder());
        if let Some(part) = job.scenario.times_within {
            store = store.times_within(part);
        }
        let bad = |error: crate::golden::GoldenError| Failure::new(Code::Usage, error.to_string());
        let source = Path::new("golden").join(job.scenario.file.file_name().unwrap_or_default());
        let comparisons = store.compare(&observation, &source, &job.scenario.description).map_err(bad)?;
        let mut blessed: Vec<PathBuf> = Vec::new();
        for comparison in &comparisons {
            // What is wrong whatever the golden says must not become one.
            if self.args.bless && violations.is_empty() {
                if comparison.accept().map_err(bad)? {
                    blessed.push(comparison.file.clone());
                }
            } else if self.library.is_writable() {
                comparison.propose();
            }
        }
        Ok(report::Outcome::Observed { comparisons, blessed, violations })
    }
}

/// The processors that this process may use, again and again, for so many guests; `None` where nobody knows.
fn processors(guests: usize) -> Vec<Option<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let cpus: Vec<usize> =
        (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or_default()).collect();
    let mut places: Vec<Option<usize>> = cpus.iter().cycle().take(guests).copied().map(Some).collect();
    places.resize(guests, None);
    places
}

/// A skip where this machine lacks something, unless everything is required; else an error.
fn lacking(error: RunError) -> report::Outcome {
    if error.unavailable && std::env::var_os("TESTBED_REQUIRE_ALL").is_none() {
        return report::Outcome::Skipped(error.message);
    }
    report::Outcome::Error(error)
}

/// The plan with what a fabric needs in each host.
fn with_devices(plan: &Plan, device: FabricKind) -> Plan {
    Plan { fabric: device, ..plan.clone() }
}

/// Waits for other runs in the lab to end.
async fn claim(client: &Client) -> Result<Claim, UpError> {
    let name = client.lab().name();
    let waiting = || remark(format_args!("waiting: another run is using lab {name}"));
    let claimed = Claim::take(client, waiting).await;
    claimed.map_err(|error| UpError::Failed {
        message: format!("cannot claim lab {name} for this run: {error}"),
        blame: Blame::Operation,
    })
}
