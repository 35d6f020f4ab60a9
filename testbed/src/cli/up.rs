//! `testbed up`: a topology becomes a lab.

use std::process::ExitCode;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use serde_json::json;

use super::fabric::Fabric;
use super::lab::seconds;
use super::{Code, Failure, Global, Outcome, block_on, print, remark, say, status};
use crate::agent::protocol::Status;
use crate::agent::runtime::{LabName, Runtime};
use crate::guest::choice::{self, Clock, Kernel, Place, Wanted};
use crate::guest::host::{self, Options, Settings};
use crate::guest::qemu::{self, Accelerator};
use crate::topology::{self, Plan};

const EXAMPLES: &str = "\
Examples:
  testbed up wan-10g                     a topology by name
  testbed up my-lab.toml --name left     a file, under another name
  testbed up wan-10g --kernel uml        in a User-Mode Linux guest
  testbed up wan-10g --dry-run --json    what it would be made of
  generate-topology | testbed up -       from standard input";

/// Bring a topology up as a lab. If it is up already, it is the same lab.
///
/// In a guest, commands see all of this machine's files, but what they write stays in the guest's memory, except in the
/// directory that they are run in.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A name, a path, or `-` for standard input.
    topology: String,
    /// The lab's name; the topology's by default.
    #[arg(short, long, env = "TESTBED_NAME", hide_env_values = true)]
    name: Option<LabName>,
    /// What carries RDMA; on siw and rxe every interface gets a device of the kernel's.
    #[arg(long, env = "TESTBED_FABRIC", value_enum, default_value_t, hide_env_values = true)]
    fabric: Fabric,
    /// Where the lab lives; by default on the first kernel that has the fabric.
    #[arg(short, long, env = "TESTBED_KERNEL", value_enum, default_value_t, hide_env_values = true)]
    kernel: Kernel,
    /// A lab that is left up is on the machine's clock; `run` has the virtual one.
    #[arg(long, env = "TESTBED_CLOCK", value_enum, default_value_t, hide = true)]
    clock: Clock,
    /// A guest's memory. Only what it uses is taken from the machine.
    #[arg(long, env = "TESTBED_GUEST_MEMORY", value_name = "MIB", value_parser = clap::value_parser!(u32).range(128..), default_value_t = Settings::default().memory, hide_env_values = true)]
    memory: u32,
    /// How long a guest may be silent until it is taken for dead.
    #[arg(long, env = "TESTBED_GUEST_PATIENCE", value_name = "SECONDS", value_parser = seconds, default_value = "60", hide_env_values = true)]
    patience: Duration,
    /// Print what the lab would be made of, and make nothing.
    #[arg(long, env = "TESTBED_DRY_RUN", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    dry_run: bool,
    /// How long it may take until the lab is ready.
    #[arg(long, env = "TESTBED_UP_TIMEOUT", value_name = "SECONDS", value_parser = seconds, default_value = "30", hide_env_values = true)]
    timeout: Duration,
}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        if self.clock == Clock::Virtual {
            return Err(Failure::with_help(
                Code::Usage,
                "a lab that is left up cannot have a virtual clock: while nobody asks anything of it, its time would race \
                 from timer to timer",
                "`testbed run --clock virtual` runs scenarios on one",
            ));
        }
        let plan = Plan { fabric: self.fabric.into(), ..topology::load(&self.topology)? };
        if self.dry_run {
            if global.json {
                say(serde_json::to_string_pretty(&plan).unwrap_or_default());
            } else {
                print(status::plan_text(&plan));
            }
            return Ok(ExitCode::SUCCESS);
        }
        let name = match &self.name {
            Some(name) => name.clone(),
            None => plan.name.parse()?,
        };
        let wanted = Wanted { kernel: self.kernel, fabrics: &[plan.fabric], clock: self.clock };
        let choice = choice::of_machine(&wanted)?;
        if let Some(note) = choice.note.filter(|_| !global.quiet) {
            remark(note);
        }
        if let Place::Qemu { image, emulator } = &choice.place
            && let Accelerator::Tcg { why } =
                block_on(async { Ok(qemu::accelerator(emulator, &image.path()).await) })?
            && !global.quiet
        {
            remark(format_args!(
                "QEMU emulates the processor, which is some ten times slower than KVM ({why})"
            ));
        }
        // This very program, whatever it is called.
        let program = std::env::current_exe().map_err(|error| {
            Failure::new(Code::Machine, format!("cannot find this program's file: {error}"))
        })?;
        let options = Options {
            place: choice.place,
            anywhere: self.kernel == Kernel::Auto,
            guest: Settings { memory: self.memory, patience: self.patience },
            ..Options::at(Runtime::locate(), program, self.timeout)
        };
        let (status, already) = block_on(bring_up(&name, &plan, &options))?;
        if global.json {
            say(format_args!("{:#}", json!({ "already_up": already, "status": status })));
        } else if !global.quiet {
            let note = if already { " (it was already)" } else { "" };
            say(format_args!("lab {name} is up{note}"));
            print(status::text(&status, global.color_stdout()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The lab's status, and whether it was up already.
async fn bring_up(name: &LabName, plan: &Plan, options: &Options) -> Result<(Status, bool), Failure> {
    let up = host::up(name, plan, options).await?;
    let already = up.lease.is_none();
    if let Some(lease) = up.lease {
        lease.release().await.map_err(|error| {
            let message = format!("the agent of lab `{name}` ended as soon as it was ready: {error}");
            Failure::new(Code::Differs, message)
        })?;
    }
    Ok((up.status, already))
}
