//! `testbed capture`: what goes over a link, as pcapng.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::lab::Which;
use super::{Code, Failure, Global, Outcome, block_on, say};

const EXAMPLES: &str = "\
Examples:
  testbed capture start server:eth0--client:eth0 -w /tmp/lab.pcapng
  testbed exec client -- ping -c3 server
  testbed capture stop server:eth0--client:eth0
  tshark -r /tmp/lab.pcapng";

/// Capture what enters a link, in both directions, to a pcapng file. `testbed status` has the links' names.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Begin a capture.
    Start {
        #[command(flatten)]
        which: Which,
        /// The link's name.
        link: String,
        /// The file, created or truncated.
        #[arg(short, long, env = "TESTBED_CAPTURE_FILE", value_name = "FILE", hide_env_values = true)]
        write: PathBuf,
    },
    /// End a capture, with the file complete.
    Stop {
        #[command(flatten)]
        which: Which,
        /// The link's name.
        link: String,
    },
}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        match self.what {
            What::Start { which, link, write } => {
                let client = which.client()?;
                block_on(async { Ok(client.capture_start(&link, &write).await?) })?;
                if global.json {
                    say(format_args!("{:#}", json!({ "link": link, "file": write })));
                } else if !global.quiet {
                    say(format_args!("capturing {link} to {}", write.display()));
                }
                Ok(ExitCode::SUCCESS)
            }
            What::Stop { which, link } => {
                let client = which.client()?;
                let (frames, dropped) = block_on(async { Ok(client.capture_stop(&link).await?) })?;
                if global.json {
                    say(format_args!("{:#}", json!({ "link": link, "frames": frames, "dropped": dropped })));
                } else if !global.quiet {
                    say(format_args!("captured {frames} frames of {link}"));
                }
                if dropped > 0 {
                    return Err(Failure::with_help(
                        Code::Differs,
                        format!("{dropped} frames of {link} are missing from the capture"),
                        "the file could not be written as fast as the link ran; write to a faster place (/dev/shm)",
                    ));
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}
