//! `testbed run`: scenarios in a lab, and a verdict on what was seen.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use clap::builder::FalseyValueParser;
use miette::Diagnostic;
use rdma_http::fabric::FabricKind;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::lab::seconds;
use super::{Code, Failure, Global, Outcome, block_on, say};
use crate::agent::client::Client;
use crate::agent::runtime::LabName;
use crate::golden::Store;
use crate::guest::host::{self, Lease, Options, Up};
use crate::report::{self, Event, Finding, GitHub, Human, JUnit, Json, Reporter, Start, Summary};
use crate::scenario::{Claim, Library, Partition, Pattern, Runner, Scenario, select};
use crate::topology::{self, Plan};

const EXAMPLES: &str = "\
Examples:
  testbed run wan-10g                          all scenarios, in a lab that is made for it
  testbed run wan-10g get-empty 'get-server-*'
  testbed run wan-10g get-empty --bless        what is seen is what is expected from now on
  testbed run --list                           which there are
  testbed run wan-10g --partition slice:1/4 --junit part-1.xml

A lab of the topology's name that is up is used and left up; else one is brought up and taken down again.
With --json there is an object a line; `event` is started, scenario or finished.";

/// Exit code of a program that a signal ended, as shells have it.
const SIGNALLED: u8 = 128;

/// Run scenarios and compare what is observed with the goldens.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A topology: a name, a path, or `-` for standard input.
    #[arg(default_value = "wan-10g")]
    topology: String,
    /// Scenarios, by name or glob; all that fit the topology by default.
    #[arg(value_name = "SCENARIO", value_parser = pattern)]
    scenarios: Vec<Pattern>,
    /// What carries RDMA.
    #[arg(long, env = "TESTBED_FABRIC", value_enum, default_value_t, hide_env_values = true)]
    fabric: Fabric,
    /// Where the lab lives: on this machine's kernel, or in a guest.
    #[arg(long, env = "TESTBED_KERNEL", value_enum, default_value_t, hide_env_values = true)]
    kernel: Kernel,
    /// Make what is seen the golden where it differs.
    #[arg(long, env = "TESTBED_BLESS", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    bless: bool,
    /// Also write a JUnit report.
    #[arg(long, env = "TESTBED_JUNIT", value_name = "FILE", hide_env_values = true)]
    junit: Option<PathBuf>,
    /// Run one part of several: hash:M/N by name, slice:M/N in turn.
    #[arg(long, env = "TESTBED_PARTITION", value_name = "PART", hide_env_values = true)]
    partition: Option<Partition>,
    /// Leave the lab up, under the topology's name, with the files of every run (captures too) in its directory.
    #[arg(long, env = "TESTBED_KEEP", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    keep: bool,
    /// The directory with scenarios and their snapshots; by default the nearest `golden`, upwards from here.
    #[arg(long, env = "TESTBED_GOLDEN", value_name = "DIR", hide_env_values = true)]
    golden: Option<PathBuf>,
    /// List the scenarios that would be run, and run none.
    #[arg(long, env = "TESTBED_LIST", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    list: bool,
    /// How long it may take until the lab is ready, or gone.
    #[arg(long, env = "TESTBED_UP_TIMEOUT", value_name = "SECONDS", value_parser = seconds, default_value = "30", hide_env_values = true)]
    up_timeout: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Fabric {
    /// Our own iWARP over TCP sockets; needs nothing of the kernel.
    #[default]
    Soft,
    /// The kernel's software iWARP.
    Siw,
    /// The kernel's software RoCE.
    Rxe,
}

impl Fabric {
    fn kind(self) -> Result<FabricKind, Failure> {
        match self {
            Self::Soft => Ok(FabricKind::Soft),
            Self::Siw => Err(not_built("fabric siw", "--fabric soft")),
            Self::Rxe => Err(not_built("fabric rxe", "--fabric soft")),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Kernel {
    /// This machine's.
    #[default]
    Host,
    /// A User-Mode Linux guest.
    Uml,
    /// A QEMU guest.
    Qemu,
}

impl Kernel {
    fn name(self) -> Result<&'static str, Failure> {
        match self {
            Self::Host => Ok("host"),
            Self::Uml => Err(not_built("kernel uml", "--kernel host")),
            Self::Qemu => Err(not_built("kernel qemu", "--kernel host")),
        }
    }
}

fn not_built(what: &str, instead: &str) -> Failure {
    Failure::with_help(
        Code::Machine,
        format!("this testbed cannot do {what} yet"),
        format!("leave it out, or say {instead}"),
    )
}

fn pattern(text: &str) -> Result<Pattern, String> {
    text.parse().map_err(|error: crate::scenario::SelectError| error.to_string())
}

fn usage(diagnostic: impl Diagnostic + Send + Sync + 'static) -> Failure {
    Failure::from_diagnostic(Code::Usage, diagnostic)
}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        let fabric = self.fabric.kind()?;
        let kernel = self.kernel.name()?;
        let plan = topology::load(&self.topology)?;
        let library = Library::open(self.golden.as_deref()).map_err(usage)?;
        if self.bless && !library.is_writable() {
            return Err(Failure::with_help(
                Code::Usage,
                "there is no `golden` directory here to bless into",
                "go to a clone of the project, or name one by --golden DIR",
            ));
        }
        let scenarios = select(library.scenarios(), &plan, &self.scenarios, self.partition).map_err(usage)?;
        if self.list {
            list(&scenarios, global);
            return Ok(ExitCode::SUCCESS);
        }
        if scenarios.is_empty() {
            return Err(Failure::with_help(
                Code::NothingRun,
                format!("no scenario was chosen for topology {}", plan.name),
                "`testbed run --list` says which there are",
            ));
        }
        let reporters = self.reporters(global)?;
        let skipped = library.scenarios().len() - scenarios.len();
        let session = Session { args: &self, plan: &plan, library: &library, fabric, kernel, skipped };
        block_on(session.run(&scenarios, reporters))
    }

    fn reporters(&self, global: &Global) -> Result<Reporters, Failure> {
        let mut all: Vec<Box<dyn Reporter>> = Vec::new();
        if global.json {
            all.push(Box::new(Json::new(io::stdout())));
        } else {
            let (color, progress) = (global.color_stdout(), global.progress());
            all.push(Box::new(Human::new(io::stdout(), color, progress, global.quiet)));
            // In JSON a line of another kind would be in the way.
            if std::env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true") {
                all.push(Box::new(GitHub::new(io::stdout())));
            }
        }
        if let Some(file) = &self.junit {
            let out = File::create(file).map_err(|error| {
                Failure::new(Code::Usage, format!("cannot write {}: {error}", file.display()))
            })?;
            all.push(Box::new(JUnit::new(BufWriter::new(out))));
        }
        Ok(Reporters(all))
    }
}

fn list(scenarios: &[&Scenario], global: &Global) {
    if global.json {
        let list: Vec<_> = scenarios
            .iter()
            .map(|scenario| {
                json!({
                    "name": scenario.name,
                    "description": scenario.description,
                    "file": scenario.file,
                })
            })
            .collect();
        say(format_args!("{:#}", json!(list)));
        return;
    }
    let width = scenarios.iter().map(|scenario| scenario.name.len()).max().unwrap_or(0);
    for scenario in scenarios {
        say(format_args!("{:width$}  {}", scenario.name, scenario.description));
    }
}

/// All who listen to a run.
struct Reporters(Vec<Box<dyn Reporter>>);

impl Reporters {
    fn tell(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        for reporter in &mut self.0 {
            match reporter.event(event) {
                // Whoever closed the pipe has seen enough, but the verdict still counts.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    return Err(Failure::new(Code::Differs, format!("cannot write the report: {error}")));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// One call of `testbed run`.
struct Session<'a> {
    args: &'a Args,
    plan: &'a Plan,
    library: &'a Library,
    fabric: FabricKind,
    kernel: &'static str,
    skipped: usize,
}

/// The lab that a run uses.
struct Lab {
    client: Client,
    claim: Claim,
    /// Holds it up, if this run brought it up.
    lease: Option<Lease>,
}

impl Session<'_> {
    async fn run(&self, scenarios: &[&Scenario], mut reporters: Reporters) -> Outcome {
        let mut interrupts = Interrupts::new()?;
        let lab = tokio::select! {
            // Dropping it half-way is fine: the agent ends with the connection of whoever started it.
            lab = self.lab() => lab?,
            signal = interrupts.next() => return Ok(ExitCode::from(SIGNALLED + signal)),
        };
        let begun = Instant::now();
        let mut summary = Summary::default();
        let (cancel, cancelled) = watch::channel(false);
        let ran = {
            let mut running = pin!(self.scenarios(scenarios, &lab, &cancelled, &mut reporters, &mut summary));
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
        let down = self.leave(lab).await;
        summary.elapsed = begun.elapsed();
        summary.interrupted = !matches!(ran, Ok(None));
        let told = reporters.tell(&Event::Finished(&summary));
        let signal = ran?;
        told?;
        down?;
        Ok(match signal {
            Some(signal) => ExitCode::from(SIGNALLED + signal),
            None if summary.is_good() && summary.run() == 0 => {
                return Err(Failure::new(Code::NothingRun, "every scenario was skipped"));
            }
            None if summary.is_good() => ExitCode::SUCCESS,
            None => Code::Differs.into(),
        })
    }

    /// The lab of the topology's name if it is up as the topology says; else a new one, of a name that no other run has.
    async fn lab(&self) -> Result<Lab, Failure> {
        let options = Options { timeout: self.args.up_timeout, ..Options::new()? };
        let usual: LabName = self.plan.name.parse()?;
        let client = Client::new(options.runtime.lab(&usual));
        if let Ok(status) = client.status().await
            && status.plan == *self.plan
        {
            let claim = claim(&client).await?;
            return Ok(Lab { client, claim, lease: None });
        }
        let name = if self.args.keep { usual } else { format!("run-{}", std::process::id()).parse()? };
        let Up { client, lease, .. } = host::up(&name, self.plan, &options).await?;
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

    async fn scenarios(
        &self,
        scenarios: &[&Scenario],
        lab: &Lab,
        cancelled: &watch::Receiver<bool>,
        reporters: &mut Reporters,
        summary: &mut Summary,
    ) -> Result<(), Failure> {
        reporters.tell(&Event::Started(&Start {
            topology: self.plan.name.clone(),
            fabric: self.fabric.to_string(),
            kernel: self.kernel.to_owned(),
            lab: lab.client.lab().name().to_string(),
            scenarios: scenarios.len(),
            skipped: self.skipped,
        }))?;
        let runner = Runner {
            client: &lab.client,
            claim: &lab.claim,
            plan: self.plan,
            fabric: self.fabric,
            keep: self.args.keep,
            cancelled,
        };
        for scenario in scenarios {
            reporters.tell(&Event::ScenarioStarted { name: &scenario.name })?;
            let begun = Instant::now();
            let outcome = self.scenario(scenario, &runner).await?;
            if *cancelled.borrow() {
                break;
            }
            let finding = Finding {
                name: scenario.name.clone(),
                file: scenario.file.clone(),
                elapsed: begun.elapsed(),
                outcome,
            };
            summary.add(finding.verdict());
            reporters.tell(&Event::ScenarioFinished(&finding))?;
        }
        Ok(())
    }

    async fn scenario(&self, scenario: &Scenario, runner: &Runner<'_>) -> Result<report::Outcome, Failure> {
        let observation = match runner.run(scenario).await {
            Ok(observation) => observation,
            Err(error) if error.unavailable && std::env::var_os("TESTBED_REQUIRE_ALL").is_none() => {
                return Ok(report::Outcome::Skipped(error.message));
            }
            Err(error) => return Ok(report::Outcome::Error(error)),
        };
        let violations = observation.violations();
        let store = Store::new(self.library.folder());
        let bad = |error: crate::golden::GoldenError| Failure::new(Code::Usage, error.to_string());
        let source = Path::new("golden").join(scenario.file.file_name().unwrap_or_default());
        let comparisons = store.compare(&observation, &source, &scenario.description).map_err(bad)?;
        let mut blessed = Vec::new();
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

/// Waits for other runs in the lab to end.
async fn claim(client: &Client) -> Result<Claim, Failure> {
    let name = client.lab().name();
    let waiting = || eprintln!("waiting: another run is using lab {name}");
    let claimed = Claim::take(client, waiting).await;
    claimed.map_err(|error| {
        Failure::new(Code::Differs, format!("cannot claim lab {name} for this run: {error}"))
    })
}

/// The signals that end a run in good order.
struct Interrupts([(u8, tokio::signal::unix::Signal); 3]);

impl Interrupts {
    fn new() -> Result<Self, Failure> {
        let listen = |kind: SignalKind| {
            let number = u8::try_from(kind.as_raw_value()).unwrap_or(0);
            signal(kind)
                .map(|signal| (number, signal))
                .map_err(|error| Failure::new(Code::Machine, format!("cannot listen for signals: {error}")))
        };
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    /// The next one's number.
    async fn next(&mut self) -> u8 {
        let Self([(a, interrupt), (b, terminate), (c, hangup)]) = self;
        tokio::select! {
            _ = interrupt.recv() => *a,
            _ = terminate.recv() => *b,
            _ = hangup.recv() => *c,
        }
    }
}
