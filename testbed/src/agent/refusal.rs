//! Why a machine refuses the agent's namespaces, and what mends it.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::geteuid;

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    UserNamespace,
    IdMap,
    Namespaces,
    Private,
    Proc,
}

impl Step {
    fn what(self) -> &'static str {
        match self {
            Self::UserNamespace => "make a user namespace",
            Self::IdMap => "map the user into its namespace",
            Self::Namespaces => "make mount, network, IPC, UTS and PID namespaces",
            Self::Private => "make the mounts private",
            Self::Proc => "mount /proc",
        }
    }
}

/// The machine cannot do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {}: {}; {reason}", step.what(), errno.desc())]
pub(super) struct Refusal {
    step: Step,
    errno: Errno,
    reason: String,
}

impl Refusal {
    /// Finds the reason on this machine.
    pub(super) fn new(step: Step, errno: Errno, privileged: bool) -> Self {
        Self { step, errno, reason: reason(step, errno, privileged, Path::new("/proc/sys")) }
    }
}

fn reason(step: Step, errno: Errno, privileged: bool, sys: &Path) -> String {
    let setting =
        |name: &str| fs::read_to_string(sys.join(name)).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let denied = matches!(errno, Errno::EPERM | Errno::EACCES);
    if step == Step::UserNamespace && setting("kernel/unprivileged_userns_clone") == Some(0) {
        return "user namespaces are for root only here (kernel.unprivileged_userns_clone = 0); as root: \
                sysctl -w kernel.unprivileged_userns_clone=1"
            .to_owned();
    }
    if setting("user/max_user_namespaces") == Some(0) && errno == Errno::ENOSPC {
        return "user namespaces are turned off here (user.max_user_namespaces = 0); as root: \
                sysctl -w user.max_user_namespaces=15000"
            .to_owned();
    }
    if !privileged && denied && setting("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return "AppArmor lets only programs with a profile make user namespaces \
                (kernel.apparmor_restrict_unprivileged_userns = 1); install ours, the restriction stays for the others: \
                sudo install -m 0644 ci/apparmor/testbed /etc/apparmor.d/testbed && \
                sudo apparmor_parser -r /etc/apparmor.d/testbed"
            .to_owned();
    }
    match (step, errno) {
        (Step::IdMap, Errno::EPERM) if geteuid().is_root() => {
            "mapping root needs CAP_SETFCAP, which this root lacks (user_namespaces(7)); \
             give it that, or CAP_SYS_ADMIN and CAP_NET_ADMIN, or run as an ordinary user"
                .to_owned()
        }
        (Step::Proc, _) if denied => {
            "parts of this machine's /proc are hidden, as in a container, so the kernel allows no second one; \
             run the container with --security-opt systempaths=unconfined, or --privileged"
                .to_owned()
        }
        (_, Errno::ENOSPC) => {
            "the limit on namespaces is reached, or they are nested too deep; see /proc/sys/user/".to_owned()
        }
        (_, Errno::EINVAL) => {
            "the kernel was built without these namespaces; `testbed doctor` says what it has".to_owned()
        }
        _ if denied => "a security policy forbids it (seccomp, as in a container?); allow it, \
                        or run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN"
            .to_owned(),
        _ => "`testbed doctor` says what this machine can do".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(step: Step, errno: Errno, settings: &[(&str, &str)]) -> String {
        let sys = tempfile::tempdir().unwrap();
        for (name, value) in settings {
            let file = sys.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, value).unwrap();
        }
        reason(step, errno, false, sys.path())
    }

    #[test]
    fn each_restriction_is_named_with_its_remedy() {
        let apparmor = [("kernel/apparmor_restrict_unprivileged_userns", "1\n")];
        for step in [Step::UserNamespace, Step::IdMap, Step::Namespaces, Step::Private] {
            assert!(why(step, Errno::EACCES, &apparmor).contains("apparmor_parser -r"), "{step:?}");
        }
        let off = why(Step::UserNamespace, Errno::ENOSPC, &[("user/max_user_namespaces", "0\n")]);
        assert!(off.contains("user.max_user_namespaces=15000"), "{off}");
        let root_only =
            why(Step::UserNamespace, Errno::EPERM, &[("kernel/unprivileged_userns_clone", "0\n")]);
        assert!(root_only.contains("unprivileged_userns_clone=1"), "{root_only}");
        assert!(why(Step::Proc, Errno::EPERM, &[]).contains("systempaths=unconfined"));
    }

    #[test]
    fn a_restriction_that_is_off_is_not_blamed() {
        let reason = why(
            Step::UserNamespace,
            Errno::EPERM,
            &[("kernel/apparmor_restrict_unprivileged_userns", "0\n"), ("user/max_user_namespaces", "100\n")],
        );
        assert!(reason.contains("seccomp") && !reason.contains("AppArmor"), "{reason}");
    }
}
