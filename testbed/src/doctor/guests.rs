//! Guests: whether they can run here, and whether there is a kernel for them.

use std::fs::File;

use nix::libc;

use super::check::{amiss, ok, tried};
use super::facts::Facts;
use super::{Check, Status};
use crate::guest::choice;
use crate::guest::qemu::{self, Accelerator};
use crate::kernel::{self, Cache, Image, Platform};

/// What is there for guests.
#[derive(Clone, Debug, Default)]
pub struct Guests {
    /// The version of the newest kernel for UML guests.
    pub uml: Option<String>,
    /// The version of the newest kernel for QEMU guests.
    pub qemu: Option<String>,
    /// What a kernel cannot be built for, and what mends that.
    pub cannot_build: Option<(String, Option<String>)>,
    /// Whether QEMU guests have the processor itself.
    pub kvm: Kvm,
}

/// What is known of KVM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kvm {
    /// A kernel was booted on it.
    Runs,
    /// It can be opened, which is no proof, and there is no kernel to boot on it.
    #[default]
    Untried,
    /// This user may not open it.
    NotAllowed,
    /// It cannot be opened, or opens and runs nothing.
    Broken(String),
}

impl Kvm {
    /// Boots a QEMU guest's kernel on it, where there is one: once for as long as the machine is up.
    fn try_out(kernel: Option<&Image>) -> Self {
        if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
            return match error.raw_os_error() {
                Some(libc::EACCES) => Self::NotAllowed,
                _ => Self::Broken(format!("/dev/kvm: {error}")),
            };
        }
        let (Some(kernel), Some(emulator)) = (kernel.map(Image::path), choice::find(choice::QEMU_PROGRAM))
        else {
            return Self::Untried;
        };
        // On a thread of its own, since whoever asks may be within a runtime already.
        let tried = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            Some(runtime.block_on(qemu::accelerator(&emulator, &kernel)))
        });
        match tried.join() {
            Ok(Some(Accelerator::Kvm)) => Self::Runs,
            Ok(Some(Accelerator::Tcg { why })) => Self::Broken(why),
            Ok(None) | Err(_) => Self::Untried,
        }
    }
}

impl Guests {
    /// This user's kernels, on this machine.
    pub(super) fn gather() -> Self {
        let images = Cache::of_user().and_then(|cache| cache.images()).unwrap_or_default();
        let newest = |platform: Platform| images.iter().find(|i| i.manifest.platform == platform);
        let version = |platform: Platform| newest(platform).map(|image| image.manifest.version.clone());
        let cannot_build = kernel::can_build().err().map(|error| (error.to_string(), error.help()));
        Self {
            uml: version(Platform::Uml),
            qemu: version(Platform::Qemu),
            cannot_build,
            kvm: Kvm::try_out(newest(Platform::Qemu)),
        }
    }
}

/// Everything about guests, in the order in which one needs it.
pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    vec![uml(facts), kvm(&facts.guests), kernels(&facts.guests), build(&facts.guests)]
}

/// Whether there can be a UML guest, now or once its kernel is built.
pub(super) fn can_uml(facts: &Facts) -> bool {
    uml(facts).status != Status::Missing
}

/// UML catches its programs' system calls by seccomp or, more slowly, by ptrace.
fn uml(facts: &Facts) -> Check {
    const NAME: &str = "uml";
    let (ptrace, seccomp) = (tried(facts, |a| a.ptrace), tried(facts, |a| a.seccomp));
    let (Some(ptrace), Some(seccomp)) = (ptrace, seccomp) else { return ok(NAME, "") };
    match (seccomp, ptrace) {
        (Ok(()), _) => ok(NAME, "guests can catch system calls by seccomp"),
        (Err(error), Ok(())) => amiss(
            NAME,
            Status::Limited,
            format!("seccomp filters: {}", error.desc()),
            "UML guests trace their programs by ptrace instead, which takes twice as long",
            None,
        ),
        (Err(_), Err(error)) => {
            let locked = facts.ptrace_scope == Some(3);
            amiss(
                NAME,
                Status::Missing,
                format!("neither seccomp filters nor ptrace: {}", error.desc()),
                if locked {
                    "no process may trace another (kernel.yama.ptrace_scope = 3), and that holds until the machine is \
                     booted again without it"
                } else {
                    "UML guests need one of them; a container's seccomp profile may forbid both"
                },
                (!locked).then(|| "docker run --security-opt seccomp=unconfined …".to_owned()),
            )
        }
    }
}

fn kvm(guests: &Guests) -> Check {
    const NAME: &str = "kvm";
    let meaning = "QEMU guests are emulated instead (TCG), some ten times slower; UML guests need no KVM";
    match &guests.kvm {
        Kvm::Runs => ok(NAME, "a kernel runs on it"),
        Kvm::Untried => ok(
            NAME,
            "/dev/kvm can be opened; `testbed kernel build qemu` gives a kernel with which to see whether it runs",
        ),
        Kvm::NotAllowed => amiss(
            NAME,
            Status::Limited,
            "/dev/kvm: not for this user",
            meaning,
            Some("sudo usermod -aG kvm $USER   # and log in again".into()),
        ),
        Kvm::Broken(why) => amiss(NAME, Status::Limited, why.clone(), meaning, None),
    }
}

fn kernels(guests: &Guests) -> Check {
    const NAME: &str = "guest kernels";
    let has =
        |version: &Option<String>, what: &str| version.as_ref().map(|v| format!("Linux {v} for {what}"));
    let built: Vec<_> = [has(&guests.uml, "UML"), has(&guests.qemu, "QEMU")].into_iter().flatten().collect();
    if guests.uml.is_some() {
        return ok(NAME, built.join(", "));
    }
    let found = if built.is_empty() { "none is built".to_owned() } else { built.join(", ") };
    amiss(
        NAME,
        Status::Limited,
        found,
        "siw, rxe and the virtual clock can be had in a UML guest, whose kernel is built once in some minutes",
        Some("testbed kernel build uml".into()),
    )
}

fn build(guests: &Guests) -> Check {
    const NAME: &str = "kernel build";
    match &guests.cannot_build {
        None => ok(NAME, "what builds a guest's kernel is installed"),
        Some((what, remedy)) => {
            // Where the kernels are there already nobody needs to build one.
            let status = if guests.uml.is_some() { Status::Limited } else { Status::Missing };
            amiss(NAME, status, what.clone(), "needed by `testbed kernel build`", remedy.clone())
        }
    }
}
