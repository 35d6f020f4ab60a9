//! Copies of `golden/`, so that an installed `testbed` works anywhere.

use std::fs;
use std::io;

use include_dir::{Dir, DirEntry, include_dir};
use tempfile::TempDir;

static GOLDEN: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../golden");

/// Writes them into `golden/` of a new temporary directory.
pub(super) fn unpack() -> io::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("testbed-").tempdir()?;
    let golden = folder.path().join("golden");
    fs::create_dir_all(golden.join("snapshots"))?;
    for file in GOLDEN.entries().iter().flat_map(files) {
        // What was not accepted yet when this was built is nobody else's business.
        if file.path().extension().is_some_and(|extension| extension == "toml" || extension == "snap") {
            fs::write(golden.join(file.path()), file.contents())?;
        }
    }
    Ok(folder)
}

/// A file, or those of a directory that has no other.
fn files<'a>(entry: &'a DirEntry<'a>) -> Vec<&'a include_dir::File<'a>> {
    match entry {
        DirEntry::File(file) => vec![file],
        DirEntry::Dir(folder) => folder.files().collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use super::*;

    fn all(golden: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for folder in ["", "snapshots"] {
            for entry in fs::read_dir(golden.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "toml" || extension == "snap") {
                    found.insert(path.strip_prefix(golden).unwrap().to_owned(), fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    #[test]
    fn the_copies_are_those_of_the_repository() {
        let copies = unpack().unwrap();
        let ours = all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden"));
        assert!(ours.len() > 9);
        assert_eq!(all(&copies.path().join("golden")), ours);
    }
}
