//! Machines, as fixtures: what each is told.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A machine on which everything works, without root; each test takes something away.
struct Machine {
    root: tempfile::TempDir,
    privileged: bool,
    attempts: Attempts,
    uml: Option<&'static str>,
}

const YES: Option<Result<(), Errno>> = Some(Ok(()));

impl Machine {
    fn new(os_release: &str, kernel: &str) -> Self {
        let machine = Self {
            root: tempfile::tempdir().unwrap(),
            privileged: false,
            attempts: Attempts {
                user_namespace: YES,
                id_map: YES,
                namespaces: YES,
                proc: YES,
                tap: YES,
                packet: YES,
                netem: YES,
                ptrace: YES,
                seccomp: YES,
            },
            uml: None,
        };
        machine
            .with("etc/os-release", os_release)
            .with("proc/sys/kernel/osrelease", &format!("{kernel}\n"))
            .with("proc/self/uid_map", "         0          0 4294967295\n")
            .with("proc/sys/user/max_user_namespaces", "62832\n")
    }

    fn debian() -> Self {
        Self::new("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n", "6.1.0-44-amd64")
    }

    fn ubuntu() -> Self {
        Self::new("PRETTY_NAME=\"Ubuntu 24.04.2 LTS\"\nID=ubuntu\nID_LIKE=debian\n", "6.11.0-1015-azure")
    }

    fn with(self, path: &str, text: &str) -> Self {
        let file = self.root.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        self
    }

    fn with_tools(self) -> Self {
        packages::TOOLS.iter().fold(self, |machine, tool| {
            let path = format!("bin/{}", tool.program);
            let machine = machine.with(&path, "");
            let file = machine.root.path().join(path);
            fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
            machine
        })
    }

    fn attempts(mut self, change: impl FnOnce(&mut Attempts)) -> Self {
        change(&mut self.attempts);
        self
    }

    fn with_root(mut self) -> Self {
        self.privileged = true;
        self.attempts(|attempts| (attempts.user_namespace, attempts.id_map) = (None, None))
    }

    /// Namespaces fail with `errno` where `at` says, and so all after them.
    fn stops(self, errno: Errno, at: fn(&mut Attempts) -> &mut Option<Result<(), Errno>>) -> Self {
        let user_namespace = self.attempts.user_namespace;
        self.attempts(|attempts| {
            *attempts = Attempts {
                user_namespace,
                id_map: user_namespace,
                namespaces: None,
                proc: None,
                tap: None,
                packet: None,
                netem: None,
                ..*attempts
            };
            *at(attempts) = Some(Err(errno));
        })
    }

    fn examine(self) -> Report {
        let root = self.root.path().to_owned();
        let sources = Sources {
            path: vec![root.join("bin")],
            root: root.clone(),
            privileged: self.privileged,
            guests: Guests { uml: self.uml.map(str::to_owned), kvm: Kvm::NotAllowed, ..Guests::default() },
            verbs: false,
            memlock: Some(8 << 20),
            attempts: Ok(self.attempts),
        };
        let mut report = examine(&Facts::gather(sources));
        for check in &mut report.checks {
            check.found = check.found.replace(root.to_str().unwrap(), "");
        }
        report
    }
}

fn check<'r>(report: &'r Report, name: &str) -> &'r Check {
    report.checks.iter().find(|check| check.name == name).unwrap()
}

fn remedy<'r>(report: &'r Report, name: &str) -> &'r str {
    check(report, name).remedy.as_deref().unwrap_or("")
}

#[test]
fn a_debian_with_everything() {
    let report = Machine::debian()
        .with_tools()
        .with(
            "lib/modules/6.1.0-44-amd64/modules.dep",
            "kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko: kernel/x.ko\n",
        )
        .examine();
    insta::assert_snapshot!(report.render(false), @r#"
    ✓ kernel              Linux 6.1.0-44-amd64 on Debian GNU/Linux 12 (bookworm)
    ✓ namespaces          made in a user namespace, without root
    ✓ proc                a lab's own /proc can be mounted
    ✓ tun                 TAP devices can be made
    ✓ packet              AF_PACKET sockets can be made
    ✓ netem               the kernel has it
    ✗ siw                 the kernel has none
                          the fabric siw cannot be used; soft carries every flow without it
    ! rxe                 installed, not loaded
                          the fabric rxe needs it; soft does not
                          $ sudo modprobe rdma_rxe
    ! sendfile            Linux 6.1.0-44-amd64 copies a file's pages when they are registered
                          kernels before 6.2 do; on siw and rxe `--memory sendfile` is refused with this reason, the other strategies and soft are as ever. `testbed up --kernel uml` has a kernel of its own
    ! memlock             8192 KiB
                          siw and rxe lock the memory that they register, and cannot register more than this; soft locks none
                          $ sudo prlimit --pid $$ --memlock=unlimited
    ! verbs               this program was built without the feature verbs; libibverbs has no driver for siw and rxe
                          no program can use a device without its driver
                          $ sudo apt-get install ibverbs-providers
    ✓ uml                 guests can catch system calls by seccomp
    ! kvm                 /dev/kvm: not for this user
                          QEMU guests are emulated instead (TCG), some ten times slower; UML guests need no KVM
                          $ sudo usermod -aG kvm $USER   # and log in again
    ! guest kernels       none is built
                          siw, rxe and the virtual clock can be had in a UML guest, whose kernel is built once in some minutes
                          $ testbed kernel build uml
    ✓ kernel build        what builds a guest's kernel is installed
    ✓ curl                /bin/curl
    ✓ tshark              /bin/tshark
    ✓ iperf3              /bin/iperf3
    ✓ ping                /bin/ping
    ✓ nginx               /bin/nginx
    ✓ rping               /bin/rping
    ✓ ibv_devinfo         /bin/ibv_devinfo
    ✓ qemu-system-x86_64  /bin/qemu-system-x86_64
    ✓ python3             /bin/python3

    soft labs: yes, without root
    relay links: yes, over TAP devices
    netem links: yes, for links with driver = "netem"
    siw: no, soft does without
    rxe: no, soft does without
    all tests: yes, every judge is installed
    "#);
}

#[test]
fn ubuntu_24_04_restricts_user_namespaces_and_the_profile_is_the_remedy() {
    let machine = || {
        Machine::ubuntu()
            .with("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
            .stops(Errno::EPERM, |attempts| &mut attempts.namespaces)
    };
    let report = machine().examine();
    assert!(!report.able);
    insta::assert_snapshot!(report.render(false), @r"
    ✓ kernel              Linux 6.11.0-1015-azure on Ubuntu 24.04.2 LTS
    ✗ namespaces          namespaces inside a user namespace: Operation not permitted
                          AppArmor restricts user namespaces to programs with a profile (Ubuntu 23.10 and later); install testbed's, the restriction stays for all others
                          $ sudo install -m 0644 ci/apparmor/testbed /etc/apparmor.d/testbed && sudo apparmor_parser -r /etc/apparmor.d/testbed
    ✗ siw                 the kernel has none
                          the fabric siw cannot be used; soft carries every flow without it
                          $ sudo apt-get install linux-modules-extra-6.11.0-1015-azure
    ✗ rxe                 the kernel has none
                          the fabric rxe cannot be used; soft carries every flow without it
                          $ sudo apt-get install linux-modules-extra-6.11.0-1015-azure
    ! memlock             8192 KiB
                          siw and rxe lock the memory that they register, and cannot register more than this; soft locks none
                          $ sudo prlimit --pid $$ --memlock=unlimited
    ! verbs               this program was built without the feature verbs; libibverbs has no driver for siw and rxe
                          no program can use a device without its driver
                          $ sudo apt-get install ibverbs-providers
    ✓ uml                 guests can catch system calls by seccomp
    ! kvm                 /dev/kvm: not for this user
                          QEMU guests are emulated instead (TCG), some ten times slower; UML guests need no KVM
                          $ sudo usermod -aG kvm $USER   # and log in again
    ! guest kernels       none is built
                          siw, rxe and the virtual clock can be had in a UML guest, whose kernel is built once in some minutes
                          $ testbed kernel build uml
    ✓ kernel build        what builds a guest's kernel is installed
    ✗ curl                not installed
                          needed by the scenario get-plain and `testbed bench fetch`
                          $ sudo apt-get install curl
    ✗ tshark              not installed
                          needed by the test that has captures dissected by somebody else
                          $ sudo apt-get install tshark
    ✗ iperf3              not installed
                          needed by `testbed bench`
                          $ sudo apt-get install iperf3
    ✗ ping                not installed
                          needed by `testbed bench relay-delay`
                          $ sudo apt-get install iputils-ping
    ✗ nginx               not installed
                          needed by the tests that rdma-fetch works with plain servers
                          $ sudo apt-get install nginx-light
    ✗ rping               not installed
                          needed by the tests that have siw and rxe judged by others
                          $ sudo apt-get install rdmacm-utils
    ✗ ibv_devinfo         not installed
                          needed by the tests that have siw and rxe judged by others
                          $ sudo apt-get install ibverbs-utils
    ✗ qemu-system-x86_64  not installed
                          needed by labs in QEMU guests (--kernel qemu)
                          $ sudo apt-get install qemu-system-x86
    ✗ python3             not installed
                          needed by the tests that rdma-fetch works with plain servers
                          $ sudo apt-get install python3

    soft labs: no, see above for what is missing
    relay links: no, and no lab to use them in
    netem links: no, and no lab to use it in
    siw: no, soft does without
    rxe: no, soft does without
    all tests: no, `ci/setup` installs curl, tshark, iperf3, ping, nginx, rping, ibv_devinfo, qemu-system-x86_64, python3
    ");
    assert!(!remedy(&report, "namespaces").contains("sysctl"), "the restriction must stay");

    let report = machine().with("etc/apparmor.d/testbed", "").examine();
    assert!(check(&report, "namespaces").meaning.contains("not loaded"));
}

#[test]
fn ubuntu_with_the_profile_can() {
    let report =
        Machine::ubuntu().with("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n").examine();
    assert!(report.able);
    assert_eq!(check(&report, "namespaces").status, Status::Ok);
}

#[test]
fn switches_that_forbid_user_namespaces_are_named() {
    let off = |path: &str, errno| {
        let report = Machine::debian()
            .with(path, "0\n")
            .stops(errno, |attempts| &mut attempts.user_namespace)
            .examine();
        assert!(!report.able);
        remedy(&report, "namespaces").to_owned()
    };
    assert!(
        off("proc/sys/user/max_user_namespaces", Errno::ENOSPC).contains("user.max_user_namespaces=15000")
    );
    assert!(
        off("proc/sys/kernel/unprivileged_userns_clone", Errno::EPERM)
            .contains("unprivileged_userns_clone=1")
    );
}

#[test]
fn a_container_that_forbids_namespaces() {
    let user = Machine::debian().stops(Errno::EPERM, |attempts| &mut attempts.user_namespace).examine();
    assert!(!user.able);
    assert!(check(&user, "namespaces").meaning.contains("seccomp"));
    // Root that lacks CAP_SYS_ADMIN goes by way of a user namespace, into which it may not be mapped.
    let root = Machine::debian().stops(Errno::EPERM, |attempts| &mut attempts.id_map).examine();
    assert!(!root.able);
    assert!(check(&root, "namespaces").meaning.contains("CAP_SETFCAP"));
    // What could not be tried is not spoken of.
    assert!(root.checks.iter().all(|check| check.name != "tun"));
}

#[test]
fn without_tun_packet_sockets_carry_the_links() {
    for (errno, command) in [(Errno::EACCES, "chmod"), (Errno::ENOENT, "modprobe tun")] {
        let report = Machine::debian().attempts(|attempts| attempts.tap = Some(Err(errno))).examine();
        assert!(report.able);
        assert!(remedy(&report, "tun").contains(command));
        let links = report.abilities.iter().find(|ability| ability.what == "relay links").unwrap();
        assert_eq!((links.able, &*links.how), (true, "over AF_PACKET sockets"));
    }
    let neither = Machine::debian()
        .attempts(|attempts| {
            (attempts.tap, attempts.packet) = (Some(Err(Errno::EACCES)), Some(Err(Errno::EPERM)))
        })
        .examine();
    assert!(!neither.able);
    assert_eq!(check(&neither, "packet").status, Status::Missing);
}

#[test]
fn without_netem_the_relay_does_all() {
    let without = |machine: Machine| machine.attempts(|a| a.netem = Some(Err(Errno::ENOENT))).examine();
    let report = without(Machine::ubuntu());
    assert!(report.able);
    assert_eq!(remedy(&report, "netem"), "sudo apt-get install linux-modules-extra-6.11.0-1015-azure");
    let module = "kernel/net/sched/sch_netem.ko.zst:\n";
    let report = without(Machine::ubuntu().with("lib/modules/6.11.0-1015-azure/modules.dep", module));
    assert_eq!(remedy(&report, "netem"), "sudo modprobe sch_netem");
}

#[test]
fn rdma_modules_are_found_wherever_they_are() {
    let root = |kernel: &str| Machine::new("ID=fedora\n", kernel).with_root();
    let rxe = |machine: Machine| check(&machine.examine(), "rxe").clone();

    let absent = rxe(root("7.3.1"));
    assert_eq!(
        (absent.status, absent.remedy.as_deref()),
        (Status::Missing, Some("sudo dnf install kernel-modules-extra-7.3.1"))
    );
    let loadable =
        rxe(root("7.3.1")
            .with("lib/modules/7.3.1/modules.dep", "kernel/rdma_rxe.ko.xz: kernel/ib_core.ko.xz\n"));
    assert_eq!(
        (loadable.status, loadable.remedy.as_deref()),
        (Status::Limited, Some("sudo modprobe rdma_rxe"))
    );
    let named_otherwise =
        rxe(root("7.3.1").with("lib/modules/7.3.1/modules.dep", "kernel/x.ko: kernel/rdma_rxe.ko\n"));
    assert_eq!(named_otherwise.status, Status::Missing);
    let built_in = rxe(root("7.3.1").with("lib/modules/7.3.1/modules.builtin", "kernel/rdma_rxe.ko\n"));
    assert_eq!(built_in.status, Status::Ok);
    let loaded = rxe(root("7.3.1").with("sys/module/rdma_rxe/refcnt", "0"));
    assert_eq!(loaded.status, Status::Ok);
    let old = rxe(root("6.12.9").with("sys/module/rdma_rxe/refcnt", "0"));
    assert!(old.meaning.contains("no packet"), "{old:?}");
}

#[test]
fn siw_needs_root_of_the_machine_and_shared_mode() {
    let siw = |machine: Machine| check(&machine.with("sys/module/siw/refcnt", "0").examine(), "siw").clone();
    assert_eq!(siw(Machine::debian().with_root()).status, Status::Ok);
    assert!(siw(Machine::debian()).meaning.contains("as root only"));
    let container = Machine::debian().with_root().with("proc/self/uid_map", "0 100000 65536\n");
    assert!(siw(container).meaning.contains("as root only"));
    let exclusive = Machine::debian().with_root().with("sys/module/ib_core/parameters/netns_mode", "N\n");
    assert_eq!(siw(exclusive).remedy.as_deref(), Some("sudo rdma system set netns shared"));
}

#[test]
fn kernels_that_copy_files_when_they_are_registered_are_told_of() {
    let report =
        |kernel: &str| Machine::new("ID=debian\n", kernel).with("sys/module/siw/refcnt", "0").examine();
    let old = report("6.1.0-28-amd64");
    let sendfile = check(&old, "sendfile");
    assert_eq!(sendfile.status, Status::Limited);
    assert_eq!(sendfile.found, "Linux 6.1.0-28-amd64 copies a file's pages when they are registered");
    assert!(sendfile.meaning.starts_with("kernels before 6.2 do; "), "{sendfile:?}");
    assert_eq!(check(&report("6.2.0"), "sendfile").status, Status::Ok);
    // Where there is neither siw nor rxe nobody registers files with the kernel.
    let neither = Machine::new("ID=debian\n", "6.1.0-28-amd64").examine();
    assert!(neither.checks.iter().all(|check| check.name != "sendfile"));
}

#[test]
fn each_distribution_gets_its_own_commands() {
    let curl = |os_release: &str| {
        let report = Machine::new(os_release, "6.12.0").examine();
        (remedy(&report, "curl").to_owned(), remedy(&report, "tshark").to_owned())
    };
    assert_eq!(curl("ID=debian"), ("sudo apt-get install curl".into(), "sudo apt-get install tshark".into()));
    assert_eq!(curl("ID=fedora"), ("sudo dnf install curl".into(), "sudo dnf install wireshark-cli".into()));
    assert_eq!(curl("ID=arch"), ("sudo pacman -S curl".into(), "sudo pacman -S wireshark-cli".into()));
    assert_eq!(curl("ID=plan9"), (String::new(), String::new()));
}

#[test]
fn a_probe_that_could_not_be_made_is_no_yes() {
    let machine = Machine::debian();
    let sources = Sources {
        path: Vec::new(),
        root: machine.root.path().to_owned(),
        privileged: false,
        guests: Guests::default(),
        verbs: false,
        memlock: None,
        attempts: Err(io::ErrorKind::WouldBlock.into()),
    };
    let report = examine(&Facts::gather(sources));
    assert!(!report.able);
    assert_eq!(check(&report, "namespaces").status, Status::Missing);
}

#[test]
fn an_empty_machine_does_not_panic() {
    let nothing = tempfile::tempdir().unwrap();
    let sources = Sources {
        path: Vec::new(),
        root: nothing.path().to_owned(),
        privileged: false,
        guests: Guests::default(),
        verbs: false,
        memlock: None,
        attempts: Err(io::ErrorKind::Other.into()),
    };
    let report = examine(&Facts::gather(sources));
    assert!(check(&report, "kernel").found.contains("unknown"));
    assert!(report.render(true).contains('\u{1b}'));
    assert!(!report.render(false).contains('\u{1b}'));
}

#[test]
fn root_whose_capabilities_are_refused_still_has_labs_in_a_user_namespace() {
    let report = Machine { privileged: true, ..Machine::debian() }.examine();
    assert!(report.able);
    assert_eq!(check(&report, "namespaces").found, "made in a user namespace, without root");
}

#[test]
fn a_hidden_proc_is_named_with_its_remedy() {
    let report = Machine::debian().attempts(|a| a.proc = Some(Err(Errno::EPERM))).examine();
    assert!(!report.able);
    assert!(remedy(&report, "proc").contains("systempaths=unconfined"));
}

#[test]
fn guests_need_seccomp_or_ptrace_and_a_kernel() {
    let uml = |machine: Machine| check(&machine.examine(), "uml").clone();
    assert_eq!(uml(Machine::debian()).status, Status::Ok);
    let traced = |machine: Machine| machine.attempts(|a| a.seccomp = Some(Err(Errno::EINVAL)));
    assert_eq!(uml(traced(Machine::debian())).status, Status::Limited);
    let neither = |machine: Machine| traced(machine).attempts(|a| a.ptrace = Some(Err(Errno::EPERM)));
    assert!(uml(neither(Machine::debian())).meaning.contains("seccomp profile"));
    let locked = neither(Machine::debian()).with("proc/sys/kernel/yama/ptrace_scope", "3\n");
    let locked = uml(locked);
    assert!(locked.meaning.contains("ptrace_scope = 3") && locked.remedy.is_none(), "{locked:?}");

    let report = Machine::debian().examine();
    assert_eq!(remedy(&report, "guest kernels"), "testbed kernel build uml");
    assert!(remedy(&report, "kvm").contains("usermod"));
    let report = Machine { uml: Some("7.3.4"), ..Machine::debian() }.examine();
    assert_eq!(check(&report, "guest kernels").found, "Linux 7.3.4 for UML");
    let siw = report.abilities.iter().find(|ability| ability.what == "siw").unwrap();
    assert_eq!((siw.able, &*siw.how), (true, "in a guest (--kernel uml)"));
}

#[test]
fn the_drivers_of_libibverbs_are_looked_for() {
    let report = Machine::debian().with("etc/libibverbs.d/rxe.driver", "driver rxe\n").examine();
    assert!(check(&report, "verbs").found.contains("no driver for siw"));
    assert_eq!(remedy(&report, "verbs"), "sudo apt-get install ibverbs-providers");
    let report = Machine::debian()
        .with("etc/libibverbs.d/rxe.driver", "driver rxe\n")
        .with("etc/libibverbs.d/siw.driver", "driver siw\n")
        .examine();
    assert!(remedy(&report, "verbs").contains("--features verbs"));
}
