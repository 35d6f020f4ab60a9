//! Snapshot files in insta's format, so that `cargo insta review` works on them.
//!
//! Reading is insta's own code. It has no public way to make a snapshot outside of an assertion, so writing is ours: a
//! YAML head, `---`, the text. The tests let insta read back what is written here.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::GoldenError;

/// Reads a snapshot's text; `None` if there is no such file.
pub(super) fn read(file: &Path) -> Result<Option<String>, GoldenError> {
    let unreadable = |error: String| GoldenError::Unreadable { file: file.to_owned(), error };
    match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error.to_string())),
        Ok(_) => {}
    }
    let snapshot = insta::Snapshot::from_file(file).map_err(|error| unreadable(error.to_string()))?;
    match snapshot.as_text() {
        Some(text) => Ok(Some(text.to_string())),
        None => Err(unreadable("it is a binary snapshot".to_owned())),
    }
}

/// Writes a snapshot whole or not at all: to a file beside it first.
pub(super) fn write(file: &Path, source: &str, description: &str, text: &str) -> Result<(), GoldenError> {
    let unwritable = |error: io::Error| GoldenError::Unwritable { file: file.to_owned(), error };
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(unwritable)?;
    let mut beside = tempfile::NamedTempFile::new_in(folder).map_err(unwritable)?;
    beside.write_all(contents(source, description, text).as_bytes()).map_err(unwritable)?;
    readable_by_all(beside.path()).map_err(unwritable)?;
    beside.persist(file).map_err(|error| unwritable(error.error))?;
    Ok(())
}

/// A temporary file is for its owner alone; a golden is a source file.
fn readable_by_all(file: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(file, fs::Permissions::from_mode(0o644))
}

/// Where insta, and so `cargo insta review`, looks for what is not accepted yet.
pub(super) fn pending(file: &Path) -> PathBuf {
    file.with_extension("snap.new")
}

fn contents(source: &str, description: &str, text: &str) -> String {
    // JSON strings are YAML strings.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!("---\nsource: {}\ndescription: {}\n---\n{}\n", quoted(source), quoted(description), normal(text))
}

/// As insta compares: lines without their carriage returns, no empty ones at the end.
pub(super) fn normal(text: &str) -> String {
    text.replace("\r\n", "\n").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "client: rdma-fetch\n  > GET /x\n    \"quoted\": {a: b}\n---\n  not a head\n\n  end\n";

    fn written(folder: &Path) -> PathBuf {
        let file = folder.join("get-x@soft.snap");
        write(&file, "golden/get-x.toml", "a \"GET\": it's #1\n", TEXT).unwrap();
        file
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = written(folder.path());
        assert_eq!(read(&file).unwrap().unwrap(), normal(TEXT));
        assert_eq!(read(&folder.path().join("missing.snap")).unwrap(), None);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["get-x@soft.snap"], "nothing else is left behind");
    }

    #[test]
    fn insta_reads_the_head() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = insta::Snapshot::from_file(&written(folder.path())).unwrap();
        assert_eq!(snapshot.metadata().source(), Some("golden/get-x.toml"));
        assert_eq!(snapshot.metadata().description(), Some("a \"GET\": it's #1\n"));
    }

    #[test]
    fn insta_itself_accepts_the_file_as_its_own() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(folder.path());
        settings.set_prepend_module_to_snapshot(false);
        settings.set_snapshot_suffix("soft");
        settings.bind(|| insta::assert_snapshot!("get-x", TEXT));
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bad.snap");
        fs::write(&file, "---\n\t: [\n---\ntext\n").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("bad.snap"));
    }

    #[test]
    fn the_pending_file_is_where_insta_looks() {
        assert_eq!(pending(Path::new("a/get-x@soft.snap")), Path::new("a/get-x@soft.snap.new"));
    }
}
