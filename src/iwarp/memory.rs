//! The memory that a connection may touch, as its driver provides it.

use std::fs::File;
use std::sync::Arc;

use super::Stag;
use super::terminate::Code;

/// On whose behalf memory is touched, which decides the rights that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// An operation that this side posted.
    Local,
    /// The peer: its Writes, and its Reads.
    Remote,
}

/// Why memory may not be touched (RFC 5041, section 7.2; RFC 5040, section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No region has this STag (any more).
    #[error("invalid STag")]
    InvalidStag,
    /// The region is in another protection domain.
    #[error("STag of another protection domain")]
    NotAssociated,
    /// The region was not registered for this.
    #[error("no right to do this to the region")]
    Access,
    /// Not within the region.
    #[error("outside the region")]
    Bounds,
    /// The tagged offset wraps.
    #[error("the tagged offset wraps")]
    Wrap,
    /// What is behind the region cannot be read: its file has become shorter, say. No fault of the peer's.
    #[error("what is behind the region cannot be read any more")]
    Unreadable,
}

impl Denied {
    /// The code for a tagged segment. DDP has none for missing rights: to the peer the STag is then not valid for
    /// this use.
    pub fn tagged_code(self) -> Code {
        match self {
            Self::InvalidStag | Self::Access => Code::TAGGED_INVALID_STAG,
            Self::NotAssociated => Code::TAGGED_NOT_ASSOCIATED,
            Self::Bounds => Code::TAGGED_BOUNDS,
            Self::Wrap => Code::TAGGED_WRAP,
            Self::Unreadable => Code::DDP_CATASTROPHIC,
        }
    }

    /// The code for a Read Request's source.
    pub fn read_code(self) -> Code {
        match self {
            Self::InvalidStag => Code::READ_INVALID_STAG,
            Self::NotAssociated => Code::READ_NOT_ASSOCIATED,
            Self::Access => Code::READ_ACCESS,
            Self::Bounds => Code::READ_BOUNDS,
            Self::Wrap => Code::READ_WRAP,
            Self::Unreadable => Code::LOCAL_CATASTROPHIC,
        }
    }

    /// The code for a Send with Invalidate.
    pub fn invalidate_code(self) -> Code {
        match self {
            Self::NotAssociated | Self::Access => Code::INVALIDATE_PROTECTION,
            _ => Code::INVALIDATE_OPERATION,
        }
    }
}

/// What a connection asks of its driver. Each call is about one segment at most: a region that is deregistered between
/// two calls is gone for the second, so nothing of a half-received message lands in it any more.
///
/// Nothing here is called for a zero-length operation: its STag and offset are not to be looked at (RFC 5040,
/// section 5.1).
pub trait Memory {
    /// Bytes of a region, lent while they are sent. Nobody changes them meanwhile.
    type Lease: AsRef<[u8]>;

    /// Checks all of `to .. to + length`, then calls `fill` once with the bytes there. `fill` reads nothing of them
    /// and writes from their beginning.
    fn sink(
        &mut self,
        reach: Reach,
        stag: Stag,
        to: u64,
        length: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), Denied>;

    /// Whether the peer may read all of `to .. to + length`.
    fn check_source(&mut self, stag: Stag, to: u64, length: u32) -> Result<(), Denied>;

    /// Checks all of `to .. to + length`, then lends it. `None`: not while earlier leases are held; ask again when they
    /// have been given back. With `inspect` the bytes will be looked at, so they must not be a file's.
    fn fetch(
        &mut self,
        reach: Reach,
        stag: Stag,
        to: u64,
        length: usize,
        inspect: bool,
    ) -> Result<Option<Lent<Self::Lease>>, Denied>;

    /// Invalidates a region on the peer's behalf (RFC 5040, section 5.3). A region that is invalid already is no error.
    fn invalidate(&mut self, stag: Stag) -> Result<(), Denied>;

    /// Checks all of `to .. to + payload.len()`, then puts `payload` there.
    fn place(&mut self, reach: Reach, stag: Stag, to: u64, payload: &[u8]) -> Result<(), Denied> {
        self.sink(reach, stag, to, payload.len(), &mut |bytes| bytes.copy_from_slice(payload))
    }
}

/// What a region lends to be sent.
#[derive(Debug)]
pub enum Lent<L> {
    /// Bytes in memory.
    Bytes(L),
    /// Bytes of a file, which the kernel can send without showing them to us.
    File(FileRange),
}

/// A part of a file.
#[derive(Clone, Debug)]
pub struct FileRange {
    /// The file.
    pub file: Arc<File>,
    /// Of the first byte.
    pub offset: u64,
    /// Bytes.
    pub length: usize,
}

/// Where `to .. to + length` lies in a region of `size` bytes whose first byte has tagged offset `base`. Sound for all
/// values.
pub fn locate(base: u64, size: usize, to: u64, length: usize) -> Result<std::ops::Range<usize>, Denied> {
    // usize is no wider than u64 on any target that Rust has a std for.
    let end = to.checked_add(length as u64).ok_or(Denied::Wrap)?;
    let start = to.checked_sub(base).ok_or(Denied::Bounds)?;
    let start = usize::try_from(start).map_err(|_| Denied::Bounds)?;
    let end = usize::try_from(end - base).map_err(|_| Denied::Bounds)?;
    if end > size { Err(Denied::Bounds) } else { Ok(start..end) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn check_78_mem_bounds_overflow_safe() {
        assert_eq!(locate(0, 10, 2, 8), Ok(2..10));
        assert_eq!(locate(0, 10, 2, 9), Err(Denied::Bounds));
        assert_eq!(locate(0, 10, 11, 0), Err(Denied::Bounds));
        assert_eq!(locate(100, 10, 99, 1), Err(Denied::Bounds));
        assert_eq!(locate(100, 10, 109, 1), Ok(9..10));
        assert_eq!(locate(0, 10, u64::MAX, 1), Err(Denied::Wrap));
        assert_eq!(locate(0, 10, u64::MAX - 1, 1), Err(Denied::Bounds));
    }

    proptest! {
        #[test]
        fn what_is_located_is_inside(base in any::<u64>(), size in any::<usize>(), to in any::<u64>(), length in any::<usize>()) {
            if let Ok(range) = locate(base, size, to, length) {
                prop_assert!(range.start <= range.end && range.end <= size);
                prop_assert_eq!(range.len(), length);
                prop_assert_eq!(base as u128 + range.start as u128, to as u128);
            }
        }
    }
}
