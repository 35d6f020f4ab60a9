//! `testbed kernel`: guest kernels, built once and kept.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use super::{Code, Failure, Global, Outcome, block_on, remark};
use crate::agent::protocol::Blame;
use crate::kernel::{
    self, Cache, Fragment, Image, Interrupt, KernelError, Manifest, Platform, Request, Source,
};

mod progress;

const BUILD_HELP: &str = "\
The source comes from the distribution (Debian, Ubuntu), by apt from the machine's own mirror, or from --source. Nothing
of the machine's configuration is changed, and no root is needed. A build that was interrupted goes on where it was.

Exit code 3 if this machine lacks what a build needs, with the command that installs it.

Examples:
  testbed kernel build
  testbed kernel build qemu --source ~/linux-7.3.tar.xz
  nice testbed kernel build --jobs 1";

/// Build, list and remove the kernels that guests run.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Build(Build),
    /// List the kernels that are ready.
    List,
    /// Remove kernels.
    Remove {
        /// Their names, or as much of each as is unique.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove sources, objects and lists that builds have left behind; kernels stay.
    Prune,
}

/// Build a guest kernel, or say that it is there.
#[derive(Debug, clap::Args)]
#[command(after_help = BUILD_HELP, disable_version_flag = true)]
struct Build {
    /// What it is to run on.
    #[arg(default_value = "uml")]
    platform: PlatformChoice,
    /// A tarball of Linux, or an unpacked one's directory (which stays as it is).
    #[arg(long, env = "TESTBED_KERNEL_SOURCE", value_name = "PATH", hide_env_values = true)]
    source: Option<PathBuf>,
    /// The version of the distribution's source [default: 7.3 where there is one, else what there is].
    #[arg(
        long = "version",
        id = "kernel-version",
        env = "TESTBED_KERNEL_VERSION",
        value_name = "VERSION",
        hide_env_values = true,
        conflicts_with = "source"
    )]
    version: Option<String>,
    /// A file of options (CONFIG_X=y) on top of those that labs need; may be given several times.
    #[arg(long, env = "TESTBED_KERNEL_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Vec<PathBuf>,
    /// Compilers that run at once [default: one for each processor].
    #[arg(short, long, env = "TESTBED_KERNEL_JOBS", value_name = "N", hide_env_values = true)]
    jobs: Option<std::num::NonZeroUsize>,
    /// Build it though it is there.
    #[arg(long, env = "TESTBED_KERNEL_REBUILD", value_parser = clap::builder::FalseyValueParser::new(), hide_env_values = true)]
    rebuild: bool,
    /// Ask the distribution whether it has a newer source.
    #[arg(long, env = "TESTBED_KERNEL_REFRESH", value_parser = clap::builder::FalseyValueParser::new(), hide_env_values = true)]
    refresh: bool,
    /// Leave the source and the objects in the cache (some 2 GB).
    #[arg(long, env = "TESTBED_KERNEL_KEEP_SOURCES", value_parser = clap::builder::FalseyValueParser::new(), hide_env_values = true)]
    keep_sources: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PlatformChoice {
    /// User-Mode Linux.
    Uml,
    /// x86-64 under QEMU.
    Qemu,
}

/// A kernel, as `--json` has it.
#[derive(Serialize)]
struct Entry<'a> {
    name: String,
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    cached: Option<bool>,
    manifest: &'a Manifest,
}

impl<'a> Entry<'a> {
    fn new(image: &'a Image, cached: Option<bool>) -> Self {
        Self { name: image.name(), path: image.path(), cached, manifest: &image.manifest }
    }
}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        let cache = Cache::of_user()?;
        match self.verb {
            Verb::Build(build) => build.run(&cache, global),
            Verb::List => list(&cache, global),
            Verb::Remove { names } => remove(&cache, &names, global),
            Verb::Prune => prune(&cache, global),
        }
    }
}

impl Build {
    fn run(self, cache: &Cache, global: &Global) -> Outcome {
        let platform = match self.platform {
            PlatformChoice::Uml => Platform::Uml,
            PlatformChoice::Qemu => Platform::Qemu,
        };
        let mut request = Request::new(platform);
        request.source = match &self.source {
            Some(path) => Source::at(path)?,
            None => Source::Package { version: self.version },
        };
        for path in &self.config {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Failure::new(Code::Usage, format!("cannot read {}: {error}", path.display()))
            })?;
            request.fragments.push(Fragment { name: path.display().to_string(), text });
        }
        if let Some(jobs) = self.jobs {
            request.jobs = jobs.get();
        }
        (request.rebuild, request.refresh, request.keep_sources) =
            (self.rebuild, self.refresh, self.keep_sources);

        let mut watch = progress::Reporter::new(global);
        let built = block_on(async {
            let (interrupter, interrupt) = Interrupt::new();
            tokio::spawn(async move {
                asked_to_end().await;
                interrupter.interrupt();
            });
            Ok(kernel::build(cache, request, interrupt, &mut watch).await?)
        });
        watch.finish();
        let built = built?;
        if global.json {
            print_json(&Entry::new(&built.image, Some(built.cached)));
        } else {
            let Manifest { version, bytes, compile_seconds, .. } = &built.image.manifest;
            let how = if built.cached {
                format!("it was built {} ago", age(built.image.age()))
            } else {
                format!("compiled in {}", age(Duration::from_secs(*compile_seconds)))
            };
            print(&format!(
                "{platform} {version}, {}, {how}\n{}\n",
                megabytes(*bytes),
                built.image.path().display()
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Waits for Ctrl-C, or for the signal that asks a process to end.
async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = async |kind| match signal(kind) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        // Then the signal does what it always does.
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}

fn list(cache: &Cache, global: &Global) -> Outcome {
    let images = cache.images()?;
    if global.json {
        let entries: Vec<_> = images.iter().map(|image| Entry::new(image, None)).collect();
        print_json(&entries);
        return Ok(ExitCode::SUCCESS);
    }
    if images.is_empty() && !global.quiet {
        remark("no kernel is built; `testbed kernel build` builds one");
    }
    let mut rows = vec![["PLATFORM", "VERSION", "CONFIG", "SIZE", "BUILT", "PATH"].map(str::to_owned)];
    for image in &images {
        let manifest = &image.manifest;
        rows.push([
            manifest.platform.to_string(),
            manifest.version.clone(),
            manifest.config_sha256.chars().take(12).collect(),
            megabytes(manifest.bytes),
            format!("{} ago", age(image.age())),
            image.path().display().to_string(),
        ]);
    }
    if images.is_empty() {
        rows.clear();
    }
    print(&table(&rows));
    Ok(ExitCode::SUCCESS)
}

fn remove(cache: &Cache, names: &[String], global: &Global) -> Outcome {
    for name in names {
        let image = cache.remove(name)?;
        if !global.quiet {
            remark(format_args!("removed {}", image.name()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn prune(cache: &Cache, global: &Global) -> Outcome {
    let bytes = cache.prune()?;
    if global.json {
        print_json(&serde_json::json!({ "bytes": bytes }));
    } else if !global.quiet {
        remark(format_args!("freed {}", megabytes(bytes)));
    }
    Ok(ExitCode::SUCCESS)
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        let code = match error.blame() {
            Blame::Usage => Code::Usage,
            Blame::Machine => Code::Machine,
            Blame::Operation => Code::Differs,
        };
        let failure = match error.help() {
            Some(help) => Self::with_help(code, error.to_string(), help),
            None => Self::new(code, error.to_string()),
        };
        match error {
            // As a shell has it of a program that SIGINT ended.
            KernelError::Interrupted => failure.with_raw_code(130),
            _ => failure,
        }
    }
}

fn print(text: &str) {
    super::print(text);
}

fn print_json(value: &impl Serialize) {
    print(&(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"));
}

/// Columns as wide as their widest cell; nothing after the last.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

/// In the largest unit of which there are two.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (count, unit) = [(86_400, "days"), (3_600, "h"), (60, "min"), (1, "s")]
        .into_iter()
        .map(|(length, unit)| (seconds / length, unit))
        .find(|(count, _)| *count >= 2)
        .unwrap_or((seconds, "s"));
    format!("{count} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes_are_for_people() {
        let of = |seconds| age(Duration::from_secs(seconds));
        assert_eq!(
            [of(0), of(1), of(119), of(120), of(7_199), of(86_400 * 3)],
            ["0 s", "1 s", "119 s", "2 min", "119 min", "3 days"]
        );
        assert_eq!(megabytes(10_417_088), "10.4 MB");
    }

    #[test]
    fn an_interrupt_is_exit_code_130() {
        let failure = Failure::from(KernelError::Interrupted);
        assert_eq!(format!("{:?}", failure.code()), format!("{:?}", ExitCode::from(130)));
    }
}
