//! QEMU: an x86-64 machine with the machine's files over 9p, a serial console and a virtio port for the line. KVM is used
//! where it was seen to boot this kernel, else QEMU emulates the processor (TCG).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::leash;
use super::machine::{Config, GuestError, word};
use crate::kernel::Cache;

/// The 9p device that has the machine's files, to be written to, for what is shared.
pub const MACHINE_TAG: &str = "machine";

/// What a kernel says that has come all the way, and finds no root.
const CAME_THROUGH: &[u8] = b"VFS: Unable to mount root";

/// How long a kernel may take to come all the way under KVM: a second, where it works.
const PROBE: Duration = Duration::from_secs(5);

/// Bytes of a probe's console that are looked at.
const PROBE_OUTPUT: u64 = 1 << 20;

/// Processors of a guest at most: its kernel has room for more, but it is one guest among other things.
const MAX_PROCESSORS: usize = 4;

/// What runs a guest's instructions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's emulation of one, some ten times slower.
    Tcg {
        /// Why not KVM.
        why: String,
    },
}

/// What was seen, and since when the machine runs that it was seen on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Seen {
    boot: String,
    emulator: PathBuf,
    kernel: PathBuf,
    accelerator: Accelerator,
}

/// Boots the kernel under KVM, to see whether it runs. The answer is kept for as long as the machine is up.
pub async fn accelerator(emulator: &Path, kernel: &Path) -> Accelerator {
    // Opening it is no proof, but who cannot open it needs no trial.
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return Accelerator::Tcg { why: format!("/dev/kvm: {error}") };
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let file = Cache::of_user().ok().map(|cache| cache.kvm());
    let kept = file.as_ref().and_then(|file| serde_json::from_slice::<Seen>(&fs::read(file).ok()?).ok());
    if let Some(seen) = kept
        && !boot.is_empty()
        && seen.boot == boot
        && seen.emulator == emulator
        && seen.kernel == kernel
    {
        return seen.accelerator;
    }
    let accelerator = match try_kvm(emulator, kernel).await {
        Ok(()) => Accelerator::Kvm,
        Err(why) => Accelerator::Tcg { why },
    };
    let seen = Seen {
        boot,
        emulator: emulator.to_owned(),
        kernel: kernel.to_owned(),
        accelerator: accelerator.clone(),
    };
    if let Some(file) = file
        && let Err(error) = keep(&file, &seen)
    {
        // It is then tried anew next time.
        tracing::info!("cannot keep what was seen of KVM in {}: {error}", file.display());
    }
    accelerator
}

fn keep(file: &Path, seen: &Seen) -> io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    let mut writing = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer(&mut writing, seen)?;
    writing.persist(file)?;
    Ok(())
}

async fn try_kvm(emulator: &Path, kernel: &Path) -> Result<(), String> {
    let mut command = machine(emulator, &Accelerator::Kvm, 128);
    command.arg("-kernel").arg(kernel).args(["-append", "console=ttyS0 panic=-1"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    leash::tie(&mut command, None);
    let mut child =
        command.spawn().map_err(|error| format!("cannot start {}: {error}", emulator.display()))?;
    let Some(output) = child.stdout.take() else { return Err("it has no output".to_owned()) };
    let watch = async {
        let (mut output, mut text) = (output.take(PROBE_OUTPUT), Vec::new());
        while output.read_buf(&mut text).await.is_ok_and(|bytes| bytes > 0) {
            if text.windows(CAME_THROUGH.len()).any(|window| window == CAME_THROUGH) {
                return Ok(());
            }
        }
        Err("/dev/kvm can be opened, but a kernel does not boot on it".to_owned())
    };
    let seconds = PROBE.as_secs();
    let seen = tokio::time::timeout(PROBE, watch).await;
    let _ = child.kill().await;
    seen.unwrap_or_else(|_| {
        Err(format!("/dev/kvm can be opened, but a kernel does not boot on it in {seconds} s"))
    })
}

/// A machine with a processor, memory and a serial console on standard output, and nothing else.
fn machine(emulator: &Path, accelerator: &Accelerator, memory: u32) -> Command {
    let mut command = Command::new(emulator);
    match accelerator {
        Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Tcg { .. } => command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_PROCESSORS);
    command.arg("-smp").arg(processors.to_string()).arg("-m").arg(format!("{memory}M"));
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-chardev", "file,id=console,path=/dev/stdout", "-serial", "chardev:console"]);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command
}

/// The command of a guest. The line is its standard input, the console its standard output.
pub(super) fn command(
    config: &Config,
    emulator: &Path,
    kernel: &Path,
    accelerator: &Accelerator,
) -> Result<Command, GuestError> {
    let mut command = machine(emulator, accelerator, config.memory);
    // Files that the guest makes are the user's; what else it asks for (another owner) is not an error.
    for (tag, writable) in [("root", false), (MACHINE_TAG, true)] {
        let readonly = if writable { "" } else { ",readonly=on" };
        command
            .arg("-fsdev")
            .arg(format!("local,id={tag},path=/,security_model=none,multidevs=remap{readonly}"));
        command.arg("-device").arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
    command.args(["-device", "virtio-serial-pci", "-chardev", "socket,id=line,fd=0"]);
    command.args(["-device", "virtserialport,chardev=line,name=testbed"]);
    let init = word(&config.program)?;
    command.arg("-kernel").arg(kernel).arg("-append").arg(format!(
        "console=ttyS0 quiet panic=-1 root=root rootfstype=9p \
         rootflags=trans=virtio,version=9p2000.L,cache=loose,msize=262144 ro init={init} -- init"
    ));
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_emulator_that_does_not_run_is_no_kvm() {
        for (emulator, why) in [("/no/such/qemu", "cannot start"), ("/bin/true", "does not boot")] {
            let tried = try_kvm(Path::new(emulator), Path::new("/no/such/kernel")).await;
            assert!(tried.as_ref().is_err_and(|text| text.contains(why)), "{tried:?}");
        }
    }

    #[test]
    fn what_was_seen_is_kept_whole() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kvm.json");
        let seen = Seen {
            boot: "1".to_owned(),
            emulator: "/qemu".into(),
            kernel: "/kernel".into(),
            accelerator: Accelerator::Tcg { why: "it is closed".to_owned() },
        };
        keep(&file, &seen).unwrap();
        assert_eq!(serde_json::from_slice::<Seen>(&fs::read(&file).unwrap()).unwrap(), seen);
    }
}
