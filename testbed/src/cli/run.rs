//! `testbed run`: scenarios in a lab, and a verdict on what was seen.

use std::fs::File;
use std::io::{self, BufWriter};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::FalseyValueParser;
use miette::Diagnostic;
use rdma_http::fabric::FabricKind;
use serde_json::json;

use self::matrix::matrix;
use self::session::Session;
use super::lab::seconds;
use super::{Code, Failure, Global, Outcome, block_on, remark, say};
use crate::guest::choice::{self, Choice, Clock, Kernel, NoChoice, Place, Wanted};
use crate::report::{Event, GitHub, Human, JUnit, Json, Reporter};
use crate::scenario::{Library, Partition, Pattern, Scenario, select};
use crate::topology;

mod interrupts;
mod matrix;
mod session;

const EXAMPLES: &str = "\
Examples:
  testbed run wan-10g                          all scenarios, in a lab that is made for it
  testbed run wan-10g get-empty 'get-server-*'
  testbed run wan-10g get-empty --bless        what is seen is what is expected from now on
  testbed run --list                           which there are
  testbed run wan-10g --partition slice:1/4 --junit part-1.xml
  testbed run wan-10g --kernel uml --clock virtual   in guests, in simulated time
  testbed run wan-10g --fabric soft,siw,rxe --kernel uml

Scenarios in guests have a guest each. With --clock virtual time moves on when everything in it waits.

A lab of the topology's name that is up is used and left up; else one is brought up and taken down again.
With --json there is an object a line; `event` is started, scenario or finished.";

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
    /// What carries RDMA; several, as in `soft,siw,rxe`, to run each scenario on each.
    #[arg(
        long,
        env = "TESTBED_FABRIC",
        value_enum,
        value_delimiter = ',',
        default_value = "soft",
        hide_env_values = true
    )]
    fabric: Vec<Fabric>,
    /// Where the labs live: on this machine's kernel, or in guests.
    #[arg(long, env = "TESTBED_KERNEL", value_enum, default_value_t, hide_env_values = true)]
    kernel: Kernel,
    /// The labs' clock: on a virtual one the goldens hold when each thing happens.
    #[arg(long, env = "TESTBED_CLOCK", value_enum, default_value_t, hide_env_values = true)]
    clock: Clock,
    /// How many guests run at once; by default one, and on a virtual clock as many as there are processors.
    #[arg(long, env = "TESTBED_JOBS", value_name = "N", hide_env_values = true)]
    jobs: Option<NonZeroUsize>,
    /// Make what is seen the golden where it differs.
    #[arg(long, env = "TESTBED_BLESS", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    bless: bool,
    /// Also write a JUnit report.
    #[arg(long, env = "TESTBED_JUNIT", value_name = "FILE", hide_env_values = true)]
    junit: Option<PathBuf>,
    /// Run one part of several: hash:M/N by name, slice:M/N in turn.
    #[arg(long, env = "TESTBED_PARTITION", value_name = "PART", hide_env_values = true)]
    partition: Option<Partition>,
    /// Leave the lab up, under the topology's name, with the files of every run (captures too) in its directory; not in
    /// guests, which end with their scenario.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fabric {
    /// Our own iWARP over TCP sockets; needs nothing of the kernel.
    Soft,
    /// The kernel's software iWARP.
    Siw,
    /// The kernel's software RoCE.
    Rxe,
    /// All of them.
    All,
}

/// What was asked for, each once, in the order in which it was named.
fn kinds(asked: &[Fabric]) -> Vec<FabricKind> {
    let mut kinds = Vec::new();
    for fabric in asked {
        let named: &[FabricKind] = match fabric {
            Fabric::Soft => &[FabricKind::Soft],
            Fabric::Siw => &[FabricKind::Siw],
            Fabric::Rxe => &[FabricKind::Rxe],
            Fabric::All => &[FabricKind::Soft, FabricKind::Siw, FabricKind::Rxe],
        };
        for kind in named {
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
    }
    kinds
}

/// Fabrics that are not there, and why not.
type Missing = Vec<(FabricKind, String)>;

/// Whether this program can drive them.
fn built_for(fabrics: &[FabricKind]) -> Result<(), Failure> {
    match fabrics.iter().find(|fabric| **fabric != FabricKind::Soft) {
        Some(fabric) if !cfg!(feature = "verbs") => Err(Failure::with_help(
            Code::Machine,
            format!("this testbed was built without what {fabric} takes"),
            "build it with the feature `verbs`, as in: cargo run -p testbed --features verbs -- run --fabric all",
        )),
        _ => Ok(()),
    }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    text.parse().map_err(|error: crate::scenario::SelectError| error.to_string())
}

fn usage(diagnostic: impl Diagnostic + Send + Sync + 'static) -> Failure {
    Failure::from_diagnostic(Code::Usage, diagnostic)
}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        let fabrics = kinds(&self.fabric);
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
        let jobs = matrix(&scenarios, &fabrics);
        if jobs.is_empty() {
            return Err(Failure::with_help(
                Code::NothingRun,
                "what was chosen runs on no fabric that was asked for",
                "name the scenario's own by --fabric, or say --fabric all",
            ));
        }
        built_for(&fabrics)?;
        let (Choice { place, note }, missing) = self.place(&fabrics)?;
        if let Some(note) = note.filter(|_| !global.quiet) {
            remark(note);
        }
        if self.keep && place != Place::Host {
            return Err(Failure::with_help(
                Code::Usage,
                format!(
                    "--keep leaves a lab up, and here each scenario has one of its own in {place}, which ends with it"
                ),
                "leave --keep out; `testbed up --kernel uml` brings up a lab in a guest that stays",
            ));
        }
        let reporters = self.reporters(global)?;
        let skipped = library.scenarios().len() - scenarios.len();
        let (place, fabrics, jobs) = (&place, &fabrics, &jobs);
        let session = Session {
            args: &self,
            plan: &plan,
            library: &library,
            place,
            fabrics,
            missing: &missing,
            jobs,
            skipped,
        };
        block_on(session.run(reporters))
    }

    /// Where the labs will live; and which fabrics are not there, and why. It is for those that are.
    fn place(&self, fabrics: &[FabricKind]) -> Result<(Choice, Missing), Failure> {
        let choose = |fabrics: &[FabricKind]| {
            choice::of_machine(&Wanted { kernel: self.kernel, fabrics, clock: self.clock })
        };
        let nowhere = match choose(fabrics) {
            Ok(choice) => return Ok((choice, Missing::new())),
            Err(nowhere) => nowhere,
        };
        let mut missing = Missing::new();
        let mut there = Vec::new();
        for fabric in fabrics {
            match choose(&[*fabric]) {
                Ok(_) => there.push(*fabric),
                Err(NoChoice { message, help, .. }) => {
                    missing.push((*fabric, format!("{message}; {}", help.replace('\n', "; "))));
                }
            }
        }
        if there.is_empty() {
            return Err(nowhere.into());
        }
        Ok((choose(&there)?, missing))
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
