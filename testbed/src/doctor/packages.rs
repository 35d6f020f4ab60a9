//! What distributions call things, and how one asks for them.

use std::fmt;

/// A family of distributions, by its package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    Apt,
    Dnf,
    Pacman,
    /// One that we have no names for.
    Other,
}

/// What runs here, from `/etc/os-release` (os-release(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Distribution {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) manager: Manager,
}

impl Distribution {
    pub(super) fn parse(os_release: &str) -> Self {
        let value = |key: &str| {
            os_release
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map_or("", |value| value.trim().trim_matches(['"', '\'']))
        };
        let id = value("ID");
        let manager = std::iter::once(id)
            .chain(value("ID_LIKE").split_whitespace())
            .find_map(|id| match id {
                "debian" | "ubuntu" => Some(Manager::Apt),
                "fedora" | "rhel" | "centos" => Some(Manager::Dnf),
                "arch" => Some(Manager::Pacman),
                _ => None,
            })
            .unwrap_or(Manager::Other);
        let name =
            Some(value("PRETTY_NAME")).filter(|name| !name.is_empty()).unwrap_or("an unknown distribution");
        Self { name: name.to_owned(), id: id.to_owned(), manager }
    }

    /// The package that has the rarer modules of the running kernel; `None` where nothing needs to be installed for
    /// them, or we do not know.
    pub(super) fn extra_modules(&self, kernel: &str) -> Option<String> {
        match self.manager {
            Manager::Apt if self.id == "ubuntu" => {
                Some(format!("sudo apt-get install linux-modules-extra-{kernel}"))
            }
            Manager::Dnf => Some(format!("sudo dnf install kernel-modules-extra-{kernel}")),
            _ => None,
        }
    }
}

/// A program that something here runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tool {
    pub(super) program: &'static str,
    /// What cannot be done without it.
    pub(super) needed_by: &'static str,
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
}

/// Every program beside our own that is used somewhere.
pub(super) const TOOLS: &[Tool] = &[
    Tool {
        program: "curl",
        needed_by: "the scenario get-plain and `testbed bench fetch`",
        apt: "curl",
        dnf: "curl",
        pacman: "curl",
    },
    Tool {
        program: "tshark",
        needed_by: "the test that has captures dissected by somebody else",
        apt: "tshark",
        dnf: "wireshark-cli",
        pacman: "wireshark-cli",
    },
    Tool { program: "iperf3", needed_by: "`testbed bench`", apt: "iperf3", dnf: "iperf3", pacman: "iperf3" },
    Tool {
        program: "ping",
        needed_by: "`testbed bench relay-delay`",
        apt: "iputils-ping",
        dnf: "iputils",
        pacman: "iputils",
    },
    Tool {
        program: "nginx",
        needed_by: "the tests that rdma-fetch works with plain servers",
        apt: "nginx-light",
        dnf: "nginx",
        pacman: "nginx",
    },
    Tool {
        program: "rping",
        needed_by: "the tests that have siw and rxe judged by others",
        apt: "rdmacm-utils",
        dnf: "librdmacm-utils",
        pacman: "rdma-core",
    },
    Tool {
        program: "ibv_devinfo",
        needed_by: "the tests that have siw and rxe judged by others",
        apt: "ibverbs-utils",
        dnf: "libibverbs-utils",
        pacman: "rdma-core",
    },
    Tool {
        program: "qemu-system-x86_64",
        needed_by: "labs in QEMU guests (--kernel qemu)",
        apt: "qemu-system-x86",
        dnf: "qemu-system-x86-core",
        pacman: "qemu-system-x86",
    },
    Tool {
        program: "python3",
        needed_by: "the tests that rdma-fetch works with plain servers",
        apt: "python3",
        dnf: "python3",
        pacman: "python",
    },
];

impl Tool {
    /// The command that installs it.
    pub(super) fn install(&self, manager: Manager) -> Option<String> {
        let package = match manager {
            Manager::Apt => self.apt,
            Manager::Dnf => self.dnf,
            Manager::Pacman => self.pacman,
            Manager::Other => return None,
        };
        Some(format!("sudo {manager} {package}"))
    }
}

/// The command that installs `program` on this machine; the program's name where we know no better.
pub fn install_command(program: &str) -> String {
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let manager = Distribution::parse(&os_release).manager;
    let tool = TOOLS.iter().find(|tool| tool.program == program);
    tool.and_then(|tool| tool.install(manager)).unwrap_or_else(|| format!("install {program}"))
}

impl fmt::Display for Manager {
    /// The command, up to the package's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apt => "apt-get install",
            Self::Dnf => "dnf install",
            Self::Pacman => "pacman -S",
            Self::Other => "install",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_recognised_by_what_they_are_like() {
        let manager = |text: &str| Distribution::parse(text).manager;
        assert_eq!(manager("ID=debian\n"), Manager::Apt);
        assert_eq!(manager("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), Manager::Apt);
        assert_eq!(manager("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), Manager::Dnf);
        assert_eq!(manager("ID=arch"), Manager::Pacman);
        assert_eq!(manager(""), Manager::Other);
        assert_eq!(Distribution::parse("").name, "an unknown distribution");
    }
}
