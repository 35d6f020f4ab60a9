//! What can become of a file while it is sent; for the testbed's tests, too.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

/// A change of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// Cut short.
    Truncate,
    /// Made longer.
    Append,
    /// Other bytes in it.
    Overwrite,
    /// Another file of that length under its name.
    Replace,
}

pub(crate) const CHANGES: [Change; 4] =
    [Change::Truncate, Change::Append, Change::Overwrite, Change::Replace];

impl Change {
    /// Changes the file, of which a few bytes at its beginning have gone by now, and few at its end.
    pub(crate) fn make(self, path: &Path) {
        let before = fs::metadata(path).unwrap();
        let beside = path.with_extension("beside");
        // Before 6.13 a kernel's timestamps move on with its clock's ticks, and two changes in one look like one.
        loop {
            File::create(&beside).unwrap().set_len(before.len()).unwrap();
            let now = fs::metadata(&beside).unwrap();
            if (now.ctime(), now.ctime_nsec()) != (before.ctime(), before.ctime_nsec()) {
                break;
            }
        }
        let file = || OpenOptions::new().write(true).open(path).unwrap();
        match self {
            Self::Truncate => file().set_len(10).unwrap(),
            Self::Append => OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap(),
            Self::Overwrite => file().write_all_at(b"other", before.len() - 5).unwrap(),
            Self::Replace => fs::rename(&beside, path).unwrap(),
        }
    }
}
