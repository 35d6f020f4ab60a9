//! Which kernel a lab gets: what is asked for and what is there -> a choice, or why there is none and what mends that.

use std::fmt;
use std::path::PathBuf;

use rdma_http::fabric::FabricKind;
use serde::{Deserialize, Serialize};

use crate::agent::protocol::Blame;
use crate::doctor::{self, Sources, Status};
use crate::kernel::{Cache, Image, Platform};

/// The emulator of QEMU guests.
pub const QEMU_PROGRAM: &str = "qemu-system-x86_64";

/// Where a lab shall live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernel {
    /// The first of the others that has the fabric.
    #[default]
    Auto,
    /// This machine's kernel.
    Host,
    /// A User-Mode Linux guest.
    Uml,
    /// A QEMU guest.
    Qemu,
}

/// A lab's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// The machine's.
    #[default]
    Wall,
    /// Simulated: it moves on when everything in the guest waits, and stands still while anything computes.
    Virtual,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Where.
    pub kernel: Kernel,
    /// What all has to be carried there.
    pub fabrics: &'a [FabricKind],
    /// On which clock.
    pub clock: Clock,
}

/// What is there.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What keeps this machine's kernel from carrying the fabrics, one for each that it cannot.
    pub host_lacks: Vec<Lack>,
    /// The newest kernel for UML guests.
    pub uml: Option<Image>,
    /// The newest kernel for QEMU guests.
    pub qemu: Option<Image>,
    /// The emulator.
    pub emulator: Option<PathBuf>,
}

/// A fabric that this machine's kernel cannot carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// The fabric.
    pub fabric: FabricKind,
    /// Why not.
    pub why: String,
    /// The command that mends it.
    pub remedy: Option<String>,
}

impl Facts {
    /// Looks at this machine, as far as what is wanted depends on it.
    pub fn gather(wanted: &Wanted<'_>) -> Self {
        let images = Cache::of_user().and_then(|cache| cache.images()).unwrap_or_default();
        let newest = |platform| images.iter().find(|image| image.manifest.platform == platform).cloned();
        let doubtful: Vec<FabricKind> =
            wanted.fabrics.iter().copied().filter(|fabric| doubtful(*fabric, wanted)).collect();
        // Doctor's look takes a moment, and most labs do not depend on it.
        let lacks = (!doubtful.is_empty()).then(|| {
            let report = doctor::examine(&doctor::Facts::gather(Sources::system()));
            doubtful.into_iter().filter_map(|fabric| lack(fabric, &report)).collect()
        });
        Self {
            host_lacks: lacks.unwrap_or_default(),
            uml: newest(Platform::Uml),
            qemu: newest(Platform::Qemu),
            emulator: find(QEMU_PROGRAM),
        }
    }
}

/// Whether doctor has to be asked for a fabric on this machine's kernel. Soft needs no more than that there can be labs;
/// where that was asked for by name, whoever makes the lab says why there is none.
fn doubtful(fabric: FabricKind, wanted: &Wanted<'_>) -> bool {
    match (wanted.kernel, fabric) {
        _ if wanted.clock == Clock::Virtual => false,
        (Kernel::Uml | Kernel::Qemu, _) | (Kernel::Host, FabricKind::Soft) => false,
        (Kernel::Auto, FabricKind::Soft) => !doctor::attempt().is_ok_and(|attempts| attempts.allow_labs()),
        (Kernel::Auto | Kernel::Host, FabricKind::Siw | FabricKind::Rxe) => true,
    }
}

/// What `doctor` has against a fabric of the kernel's.
fn lack(fabric: FabricKind, report: &doctor::Report) -> Option<Lack> {
    let check = match fabric {
        FabricKind::Soft if report.able => return None,
        // What every lab needs comes first.
        FabricKind::Soft => report.checks.iter().find(|check| check.status == Status::Missing)?,
        FabricKind::Siw | FabricKind::Rxe => {
            let name = fabric.to_string();
            report.checks.iter().find(|check| check.name == name && check.status != Status::Ok)?
        }
    };
    let why = match &check.meaning[..] {
        "" => check.found.clone(),
        meaning => format!("{}: {meaning}", check.found),
    };
    Some(Lack { fabric, why, remedy: check.remedy.clone() })
}

/// A program in `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| {
        std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// Where a lab will live.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// On this machine's kernel.
    Host,
    /// In a User-Mode Linux guest with this kernel.
    Uml(Image),
    /// In a QEMU guest.
    Qemu {
        /// Its kernel.
        image: Image,
        /// The emulator.
        emulator: PathBuf,
    },
}

impl Place {
    /// `host`, `uml` or `qemu`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Uml(_) => "uml",
            Self::Qemu { .. } => "qemu",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("this machine's kernel"),
            Self::Uml(image) => write!(f, "a User-Mode Linux guest, Linux {}", image.manifest.version),
            Self::Qemu { image, .. } => write!(f, "a QEMU guest, Linux {}", image.manifest.version),
        }
    }
}

/// A choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Where the lab will live.
    pub place: Place,
    /// Why not where a user would expect it, in a line: for standard error.
    pub note: Option<String>,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NoChoice {
    /// What stands against it.
    pub message: String,
    /// What mends it.
    pub help: String,
    /// Whose fault it is.
    pub blame: Blame,
}

/// Looks at this machine and chooses.
pub fn of_machine(wanted: &Wanted<'_>) -> Result<Choice, NoChoice> {
    choose(wanted, &Facts::gather(wanted))
}

/// Chooses. Touches nothing.
pub fn choose(wanted: &Wanted<'_>, facts: &Facts) -> Result<Choice, NoChoice> {
    let plain = |place| Choice { place, note: None };
    match (wanted.clock, wanted.kernel) {
        (Clock::Virtual, Kernel::Host | Kernel::Qemu) => Err(NoChoice {
            message: "only a User-Mode Linux guest has a virtual clock".to_owned(),
            help: "say --kernel uml, or leave --kernel out".to_owned(),
            blame: Blame::Usage,
        }),
        (Clock::Virtual, _) | (_, Kernel::Uml) => uml(facts).map(plain),
        (_, Kernel::Qemu) => qemu(facts).map(plain),
        (_, Kernel::Host) => host(facts).map(plain),
        (_, Kernel::Auto) => match host(facts) {
            Ok(place) => Ok(plain(place)),
            Err(no_host) => {
                let place = uml(facts).or_else(|_| qemu(facts)).map_err(|_| nowhere(no_host.clone()))?;
                let lacking: Vec<String> =
                    facts.host_lacks.iter().map(|lack| lack.fabric.to_string()).collect();
                let note = match &facts.host_lacks[..] {
                    [Lack { fabric: FabricKind::Soft, why, .. }, ..] => {
                        format!("this machine's kernel can have no lab ({why}): it lives in {place}")
                    }
                    _ => {
                        let lacking = lacking.join(" and no ");
                        format!("this machine's kernel has no {lacking}: the lab lives in {place}")
                    }
                };
                Ok(Choice { place, note: Some(note) })
            }
        },
    }
}

fn host(facts: &Facts) -> Result<Place, NoChoice> {
    let [first, ..] = &facts.host_lacks[..] else { return Ok(Place::Host) };
    let lines: Vec<String> = facts
        .host_lacks
        .iter()
        .map(|lack| format!("{} on this machine's kernel: {}", lack.fabric, lack.why))
        .collect();
    let instead = format!("--kernel uml has {} without root or modules", first.fabric);
    let remedies: Vec<&str> = facts.host_lacks.iter().filter_map(|lack| lack.remedy.as_deref()).collect();
    let help = match remedies.first() {
        Some(remedy) => format!("{remedy}\n{instead}"),
        None => instead,
    };
    Err(NoChoice { message: lines.join("\n"), help, blame: Blame::Machine })
}

fn uml(facts: &Facts) -> Result<Place, NoChoice> {
    facts.uml.clone().map(Place::Uml).ok_or_else(|| NoChoice {
        message: "there is no kernel for User-Mode Linux guests yet".to_owned(),
        help: "build one, once (some minutes): testbed kernel build uml".to_owned(),
        blame: Blame::Machine,
    })
}

fn qemu(facts: &Facts) -> Result<Place, NoChoice> {
    let image = facts.qemu.clone().ok_or_else(|| NoChoice {
        message: "there is no kernel for QEMU guests yet".to_owned(),
        help: "build one, once (some minutes): testbed kernel build qemu".to_owned(),
        blame: Blame::Machine,
    })?;
    let emulator = facts.emulator.clone().ok_or_else(|| NoChoice {
        message: format!("there is no {QEMU_PROGRAM} in PATH"),
        help: "install QEMU's emulator of x86-64; on Debian and Ubuntu: sudo apt-get install qemu-system-x86"
            .to_owned(),
        blame: Blame::Machine,
    })?;
    Ok(Place::Qemu { image, emulator })
}

/// Neither here nor in a guest.
fn nowhere(host: NoChoice) -> NoChoice {
    NoChoice {
        message: format!("{}\nand there is no kernel for guests yet", host.message),
        help: format!(
            "build one, once (some minutes): testbed kernel build uml\nor: {}",
            host.help.lines().next().unwrap_or_default()
        ),
        blame: Blame::Machine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Manifest;
    use FabricKind::{Rxe, Siw, Soft};

    fn image(platform: Platform) -> Image {
        let manifest = Manifest {
            platform,
            version: "7.3".to_owned(),
            key: "0".repeat(64),
            request: String::new(),
            source: String::new(),
            config_sha256: String::new(),
            compiler: String::new(),
            image: "linux".to_owned(),
            bytes: 1,
            built_at: 0,
            compile_seconds: 1,
            objects: 1,
        };
        Image { directory: format!("/cache/{platform}").into(), manifest }
    }

    /// What is there: `s` siw and `r` rxe on the machine, `n` no labs there, `u` and `q` kernels for guests, `e` the emulator.
    fn facts(there: &str, fabrics: &[FabricKind]) -> Facts {
        let has = |what: char| there.contains(what);
        let lacks = |fabric: FabricKind| match fabric {
            Soft => has('n'),
            Siw => !has('s'),
            Rxe => !has('r'),
        };
        let lack = |fabric| Lack {
            fabric,
            why: "the kernel has none".into(),
            remedy: Some("sudo modprobe it".into()),
        };
        Facts {
            host_lacks: fabrics.iter().copied().filter(|fabric| lacks(*fabric)).map(lack).collect(),
            uml: has('u').then(|| image(Platform::Uml)),
            qemu: has('q').then(|| image(Platform::Qemu)),
            emulator: has('e').then(|| "/usr/bin/qemu".into()),
        }
    }

    fn decide(kernel: Kernel, clock: Clock, fabrics: &[FabricKind], there: &str) -> Result<Choice, NoChoice> {
        choose(&Wanted { kernel, fabrics, clock }, &facts(there, fabrics))
    }

    #[test]
    fn what_is_there_decides() {
        use Kernel::{Auto, Host, Qemu, Uml};
        type Case = (Kernel, &'static [FabricKind], &'static str, Result<&'static str, &'static str>);
        let table: &[Case] = &[
            (Auto, &[Soft], "", Ok("host")),
            (Auto, &[Soft], "srueq", Ok("host")),
            (Auto, &[Soft], "nu", Ok("uml")),
            (Auto, &[Soft], "nqe", Ok("qemu")),
            (Auto, &[Soft], "n", Err("testbed kernel build uml")),
            (Auto, &[Siw], "s", Ok("host")),
            (Auto, &[Siw], "rue", Ok("uml")),
            (Auto, &[Siw], "qe", Ok("qemu")),
            (Auto, &[Siw], "uqe", Ok("uml")),
            (Auto, &[Siw], "q", Err("testbed kernel build uml")),
            (Auto, &[Rxe], "", Err("sudo modprobe it")),
            // All of them in one lab.
            (Auto, &[Soft, Siw, Rxe], "su", Ok("uml")),
            (Auto, &[Soft, Siw, Rxe], "sru", Ok("host")),
            (Host, &[Soft], "", Ok("host")),
            (Host, &[Rxe], "r", Ok("host")),
            (Host, &[Rxe], "su", Err("sudo modprobe it")),
            (Uml, &[Soft], "u", Ok("uml")),
            (Uml, &[Siw], "sqe", Err("testbed kernel build uml")),
            (Qemu, &[Soft], "qe", Ok("qemu")),
            (Qemu, &[Soft], "ue", Err("testbed kernel build qemu")),
            (Qemu, &[Soft], "uq", Err("apt-get install qemu-system-x86")),
        ];
        for (kernel, fabrics, there, expected) in table {
            let case = format!("{kernel:?} {fabrics:?} {there:?}");
            match (decide(*kernel, Clock::Wall, fabrics, there), expected) {
                (Ok(choice), Ok(name)) => {
                    assert_eq!(choice.place.name(), *name, "{case}");
                    let surprising = *kernel == Auto && *name != "host";
                    assert_eq!(choice.note.is_some(), surprising, "{case}");
                }
                (Err(no), Err(help)) => {
                    assert!(no.help.contains(help), "{case}: {no:?}");
                    assert_eq!(no.blame, Blame::Machine, "{case}");
                }
                (got, _) => panic!("{case}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_virtual_clock_is_umls() {
        for kernel in [Kernel::Auto, Kernel::Uml] {
            let choice = decide(kernel, Clock::Virtual, &[Soft], "sruqe").unwrap();
            assert_eq!((choice.place.name(), choice.note), ("uml", None));
            let no = decide(kernel, Clock::Virtual, &[Soft], "srqe").unwrap_err();
            assert!(no.help.contains("testbed kernel build uml"), "{no:?}");
        }
        for kernel in [Kernel::Host, Kernel::Qemu] {
            let no = decide(kernel, Clock::Virtual, &[Soft], "sruqe").unwrap_err();
            assert_eq!(no.blame, Blame::Usage);
        }
    }

    #[test]
    fn the_note_says_what_goes_where() {
        let choice = decide(Kernel::Auto, Clock::Wall, &[Siw, Rxe], "u").unwrap();
        let expected = "this machine's kernel has no siw and no rxe: the lab lives in a User-Mode Linux guest, Linux 7.3";
        assert_eq!(choice.note.as_deref(), Some(expected));
        let choice = decide(Kernel::Auto, Clock::Wall, &[Soft], "nu").unwrap();
        let expected = "this machine's kernel can have no lab (the kernel has none): it lives in a User-Mode Linux guest, Linux 7.3";
        assert_eq!(choice.note.as_deref(), Some(expected));
    }
}
