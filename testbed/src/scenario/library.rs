//! The scenarios that there are: those of a `golden/` directory, or the copies inside the program.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use miette::Diagnostic;
use tempfile::TempDir;

use super::{Scenario, ScenarioError};

/// No scenario needs more; a wrong file should not fill the memory.
const MAX_BYTES: u64 = 1 << 20;

/// A `golden/` directory, read.
#[derive(Debug)]
pub struct Library {
    folder: PathBuf,
    scenarios: Vec<Scenario>,
    /// Holds the copies of what is inside the program, if it is those.
    copies: Option<TempDir>,
}

/// Why there are no scenarios to choose from.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[non_exhaustive]
pub enum LibraryError {
    /// A file is wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Scenario(#[from] Box<ScenarioError>),
    /// Something cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The directory has none.
    #[error("{} holds no scenario", folder.display())]
    #[diagnostic(help("a scenario is a file NAME.toml in it"))]
    Empty {
        /// The directory.
        folder: PathBuf,
    },
    /// The copies cannot be unpacked.
    #[error("cannot unpack the scenarios that are inside this program: {error}")]
    #[diagnostic(help("give a directory of them by --golden, or make room in $TMPDIR"))]
    Unpack {
        /// Why not.
        error: io::Error,
    },
}

impl Library {
    /// The scenarios of `folder`; without one, those of the nearest `golden/` of the current directory or one above it;
    /// else the copies inside the program.
    pub fn open(folder: Option<&Path>) -> Result<Self, LibraryError> {
        if let Some(folder) = folder {
            return Self::read(folder, None);
        }
        let here = std::env::current_dir().unwrap_or_default();
        match here.ancestors().map(|above| above.join("golden")).find(|folder| has_scenarios(folder)) {
            Some(folder) => Self::read(folder.strip_prefix(&here).unwrap_or(&folder), None),
            None => {
                let copies = super::embedded::unpack().map_err(|error| LibraryError::Unpack { error })?;
                let folder = copies.path().join("golden");
                Self::read(&folder, Some(copies))
            }
        }
    }

    fn read(folder: &Path, copies: Option<TempDir>) -> Result<Self, LibraryError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |error| LibraryError::Unreadable { path, error }
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(unreadable(folder))? {
            let path = entry.map_err(unreadable(folder))?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                files.push(path);
            }
        }
        // By name, not by file: `.` would come after `-`.
        files.sort_by(|a, b| a.file_stem().cmp(&b.file_stem()));
        let mut scenarios = Vec::new();
        for file in files {
            let length = fs::metadata(&file).map_err(unreadable(&file))?.len();
            if length > MAX_BYTES {
                let error = io::Error::other(format!("it has more than {MAX_BYTES} bytes"));
                return Err(LibraryError::Unreadable { path: file, error });
            }
            let text = fs::read_to_string(&file).map_err(unreadable(&file))?;
            scenarios.push(Scenario::parse(&file, &text)?);
        }
        if scenarios.is_empty() {
            return Err(LibraryError::Empty { folder: folder.to_owned() });
        }
        Ok(Self { folder: folder.to_owned(), scenarios, copies })
    }

    /// All of them, by name.
    pub fn scenarios(&self) -> &[Scenario] {
        &self.scenarios
    }

    /// Where they and their snapshots are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it is a directory of the user's, where snapshots can be kept.
    pub fn is_writable(&self) -> bool {
        self.copies.is_none()
    }
}

fn has_scenarios(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "description = \"x\"\n[server]\n[client]\ntarget = \"/x\"\n";

    #[test]
    fn a_directory_is_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.toml", "a-b.toml", "a.toml", "README.md"] {
            fs::write(folder.path().join(name), GOOD).unwrap();
        }
        let library = Library::open(Some(folder.path())).unwrap();
        let names: Vec<&str> = library.scenarios().iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["a", "a-b", "b"]);
        assert!(library.is_writable());
    }

    #[test]
    fn a_bad_file_and_an_empty_directory_are_errors_that_say_where() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Library::open(Some(folder.path())), Err(LibraryError::Empty { .. })));
        fs::write(folder.path().join("a.toml"), "description = 3\n").unwrap();
        let error = Library::open(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("a.toml:1:15: "), "{error}");
        let missing = folder.path().join("missing");
        let error = Library::open(Some(&missing)).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
    }

    #[test]
    fn the_copies_inside_are_good() {
        let copies = super::super::embedded::unpack().unwrap();
        let folder = copies.path().join("golden");
        let library = Library::read(&folder, Some(copies)).unwrap();
        assert!(library.scenarios().len() >= 9);
        assert!(!library.is_writable());
    }
}
