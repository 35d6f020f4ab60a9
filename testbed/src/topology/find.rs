//! From what the user typed to a topology: a name, a path, or `-` for standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::error::{TopologyError, nearest};
use super::{Plan, Topology};

/// No topology needs more; a wrong argument should not fill the memory.
const MAX_BYTES: u64 = 1 << 20;

/// Copies of `topologies/`, so that an installed `testbed` works anywhere.
const EMBEDDED: &[(&str, &str)] = &[
    ("direct", include_str!("../../../topologies/direct.toml")),
    ("lan-10g", include_str!("../../../topologies/lan-10g.toml")),
    ("wan-10g", include_str!("../../../topologies/wan-10g.toml")),
    ("wan-10g-lossy", include_str!("../../../topologies/wan-10g-lossy.toml")),
    ("wan-1g", include_str!("../../../topologies/wan-1g.toml")),
];

/// A topology that can be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its file; `None` if it is the copy inside the program.
    pub file: Option<PathBuf>,
}

/// Loads a topology and makes its plan. `spec` is a name found in `topologies/` (of the current directory or one above
/// it; else a copy inside the program), the path of a file, or `-` for standard input.
pub fn load(spec: &str) -> Result<Plan, TopologyError> {
    Ok(load_topology(spec)?.plan())
}

/// As [`load`], without the last step.
pub fn load_topology(spec: &str) -> Result<Topology, TopologyError> {
    if spec == "-" {
        let text = limited(io::stdin().lock(), "standard input")
            .map_err(|error| with_path(error, Path::new("standard input")))?;
        return Ok(Topology::parse("<stdin>", &text?)?);
    }
    let directory = directory();
    if is_name(spec) {
        if let Some(file) = directory.as_ref().map(|dir| dir.join(format!("{spec}.toml")))
            && file.is_file()
        {
            return from_file(&file);
        }
        if let Some((name, text)) = EMBEDDED.iter().find(|(name, _)| *name == spec) {
            return Ok(Topology::parse(&format!("topologies/{name}.toml"), text)?);
        }
    }
    let path = Path::new(spec);
    if path.is_file() || !is_name(spec) && path.exists() {
        return from_file(path);
    }
    if is_name(spec) || !spec.contains('/') && !spec.ends_with(".toml") {
        return Err(unknown(spec, directory.as_deref()));
    }
    Err(TopologyError::Unreadable { path: path.into(), source: io::ErrorKind::NotFound.into() })
}

/// The topologies that can be named, sorted.
pub fn known() -> Vec<Known> {
    known_in(directory().as_deref())
}

fn known_in(directory: Option<&Path>) -> Vec<Known> {
    let mut found: Vec<Known> = directory
        .and_then(|directory| directory.read_dir().ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?.strip_suffix(".toml")?.to_owned();
            Some(Known { name, file: Some(path) })
        })
        .collect();
    for (name, _) in EMBEDDED {
        if !found.iter().any(|known| known.name == *name) {
            found.push(Known { name: (*name).to_owned(), file: None });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Neither a path nor a file's name.
fn is_name(spec: &str) -> bool {
    !spec.is_empty() && !spec.contains('/') && !spec.ends_with(".toml") && !spec.starts_with('.')
}

/// The nearest `topologies/`, from the current directory upwards.
fn directory() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    here.ancestors().map(|above| above.join("topologies")).find(|candidate| candidate.is_dir())
}

fn from_file(path: &Path) -> Result<Topology, TopologyError> {
    let shown = path.strip_prefix(std::env::current_dir().unwrap_or_default()).unwrap_or(path);
    let origin = shown.display().to_string();
    let text =
        File::open(path).and_then(|file| limited(file, &origin)).map_err(|error| with_path(error, shown))?;
    Ok(Topology::parse(&origin, &text?)?)
}

fn with_path(source: io::Error, path: &Path) -> TopologyError {
    TopologyError::Unreadable { path: path.into(), source }
}

/// All of `input`, if it is not too long. The inner error is the latter.
fn limited(input: impl Read, origin: &str) -> io::Result<Result<String, TopologyError>> {
    let mut text = String::new();
    input.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Ok(Err(TopologyError::TooLarge { origin: origin.to_owned(), limit: MAX_BYTES }));
    }
    Ok(Ok(text))
}

fn unknown(spec: &str, directory: Option<&Path>) -> TopologyError {
    let known = known_in(directory);
    let names: Vec<&str> = known.iter().map(|known| known.name.as_str()).collect();
    let list = format!("there are: {}; or give the path of a file", names.join(", "));
    let help = match nearest(spec, names.iter().copied()) {
        Some(meant) => format!("did you mean \"{meant}\"? {list}"),
        None => list,
    };
    TopologyError::Unknown { name: spec.to_owned(), help }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copies_inside_are_the_files() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../topologies");
        let known = known_in(Some(&root));
        let files: Vec<_> =
            known.iter().filter(|known| known.file.is_some()).map(|known| &known.name).collect();
        let copies: Vec<_> = EMBEDDED.iter().map(|(name, _)| name).collect();
        assert_eq!(files, copies);
    }

    #[test]
    fn every_topology_we_ship_is_good_and_named_as_its_file() {
        for (name, text) in EMBEDDED {
            let topology = Topology::parse(name, text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(topology.name, *name);
            assert!(!topology.description.is_empty());
        }
    }

    #[test]
    fn an_unknown_name_gets_a_list_and_a_guess() {
        let TopologyError::Unknown { help, .. } = unknown("wan10g", None) else { panic!() };
        assert_eq!(
            help,
            "did you mean \"wan-10g\"? there are: direct, lan-10g, wan-10g, wan-10g-lossy, wan-1g; or give the path of a file"
        );
    }

    #[test]
    fn what_is_too_long_is_not_read() {
        let endless = io::repeat(b'#');
        let error = limited(endless, "x.toml").unwrap().unwrap_err();
        assert!(matches!(error, TopologyError::TooLarge { .. }), "{error}");
    }
}
