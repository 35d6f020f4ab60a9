//! Copies of `golden/`, so that an installed `testbed` works anywhere.

use std::fs;
use std::io;

use tempfile::TempDir;

macro_rules! copies {
    ($($name:literal),* $(,)?) => {
        &[$(
            (concat!($name, ".toml"), include_str!(concat!("../../../golden/", $name, ".toml"))),
            (
                concat!("snapshots/", $name, ".snap"),
                include_str!(concat!("../../../golden/snapshots/", $name, ".snap")),
            ),
            (
                concat!("snapshots/", $name, "@soft.snap"),
                include_str!(concat!("../../../golden/snapshots/", $name, "@soft.snap")),
            ),
        )*]
    };
}

const COPIES: &[(&str, &str)] = copies![
    "get-empty",
    "get-malformed",
    "get-missing",
    "get-over-maxlen",
    "get-plain",
    "get-server-writes-1b",
    "get-server-writes-1mib",
    "get-server-writes-64mib",
    "get-unreachable",
];

/// Writes them into `golden/` of a new temporary directory.
pub(super) fn unpack() -> io::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("testbed-").tempdir()?;
    fs::create_dir_all(folder.path().join("golden/snapshots"))?;
    for (name, text) in COPIES {
        fs::write(folder.path().join("golden").join(name), text)?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn nothing_in_golden_is_left_out() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden");
        let mut there = BTreeSet::new();
        for (folder, prefix) in [(golden.clone(), ""), (golden.join("snapshots"), "snapshots/")] {
            for entry in fs::read_dir(folder).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if name.ends_with(".toml") || name.ends_with(".snap") {
                    there.insert(format!("{prefix}{name}"));
                }
            }
        }
        let copies: BTreeSet<String> = COPIES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(copies, there);
    }
}
