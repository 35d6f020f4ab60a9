//! Why the kernel has no RDMA device for us, and what mends it.

use std::io;

use nix::errno::Errno;

use super::Kind;

const ELSEWHERE: &str = "or have the lab in a guest with `--kernel uml`, where it is built in";

/// Why there is no RDMA device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RdmaError {
    /// No NETLINK_RDMA.
    #[error(
        "this kernel has no RDMA, or its module is not loaded ({0}); `modprobe ib_core` may load it (Debian and Ubuntu: \
         the package linux-modules-extra-$(uname -r) where it is missing), {ELSEWHERE}"
    )]
    NoSubsystem(io::Error),
    /// No CAP_NET_ADMIN in the initial user namespace.
    #[error(
        "making and deleting RDMA devices needs CAP_NET_ADMIN in the machine's first user namespace, which a lab without \
         root does not have; run `testbed up` as root, {ELSEWHERE}"
    )]
    NotPermitted,
    /// No module of that kind.
    #[error(
        "this kernel has no {}; `modprobe {}` may load it (Debian's kernels have no siw; Ubuntu has both in the package \
         linux-modules-extra-$(uname -r)), {ELSEWHERE}", .0.link_type(), .0.module()
    )]
    NoSuchKind(Kind),
    /// The interface is gone.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// Two devices of a name, or of a kind on an interface.
    #[error(
        "a device {name} is there already, or {interface} has one of this kind; see them with `rdma link show`, and delete \
         what nobody needs with `rdma link delete NAME`"
    )]
    Exists { name: String, interface: String },
    /// The kind does not take such interfaces.
    #[error("{} does not work on {interface}: the interface's type is not supported", .kind.link_type())]
    NotSupported { kind: Kind, interface: String },
    /// The kernel's RDMA devices belong to namespaces one by one, and ours cannot be moved.
    #[error(
        "RDMA devices are not shared between network namespaces here, and siw and rxe devices cannot be moved into one; \
         with no lab up and no container running, as root: `rdma system set netns shared`"
    )]
    Exclusive,
    /// rxe listens in the machine's namespace, whoever's interface it is on.
    #[error(
        "rxe does not work inside network namespaces on this kernel ({release}): it takes the device, but listens on UDP \
         port 4791 of the machine's own namespace only, so that no packet would ever arrive. Linux 7.3 is known to work; \
         use `--fabric siw`, {ELSEWHERE}"
    )]
    NoNamespaces { release: String },
    /// The port's state or GIDs did not come in time.
    #[error("it is not ready after {seconds} s: {missing}")]
    NotSettled { seconds: u64, missing: String },
    /// Whatever else.
    #[error("cannot {step}: {cause}")]
    Other { step: &'static str, cause: io::Error },
}

impl RdmaError {
    /// The kernel refused to make a device.
    pub(super) fn adding(kind: Kind, name: &str, interface: &str, cause: io::Error) -> Self {
        let (name, interface) = (name.to_owned(), interface.to_owned());
        match cause.raw_os_error().map(Errno::from_raw) {
            // The answer for a type that no module has (nldev_newlink): names are checked before.
            Some(Errno::EINVAL) => Self::NoSuchKind(kind),
            Some(Errno::ENODEV) => Self::NoInterface(interface),
            Some(Errno::EEXIST | Errno::ENFILE) => Self::Exists { name, interface },
            Some(Errno::EOPNOTSUPP) => Self::NotSupported { kind, interface },
            _ => Self::asking("make it", cause),
        }
    }

    /// The kernel refused whatever else.
    pub(super) fn asking(step: &'static str, cause: io::Error) -> Self {
        match cause.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => Self::NotPermitted,
            Some(Errno::EPROTONOSUPPORT) => Self::NoSubsystem(cause),
            _ => Self::Other { step, cause },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        let adding =
            |errno: Errno| RdmaError::adding(Kind::Rxe, "rxe-a-eth0", "eth0", errno.into()).to_string();
        for (errno, remedy) in [
            (Errno::EINVAL, "modprobe rdma_rxe"),
            (Errno::EPERM, "as root, or have the lab in a guest with `--kernel uml`"),
            (Errno::EEXIST, "rdma link delete"),
            (Errno::EPROTONOSUPPORT, "modprobe ib_core"),
            (Errno::ENODEV, "no interface eth0"),
            (Errno::EOPNOTSUPP, "rxe does not work on eth0"),
            (Errno::ENOMEM, "cannot make it: Cannot allocate memory"),
        ] {
            assert!(adding(errno).contains(remedy), "{errno}: {}", adding(errno));
        }
    }
}
