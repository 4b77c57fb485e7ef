//! Results that the broker will never take, kept beside the spool for anybody who wants to see them.
//!
//! A spooled file is kept under another suffix; past the bounds, the oldest are deleted. Invariant: these files are
//! few and not large, whatever plugins print.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Suffix of the files set aside.
pub(super) const EXTENSION: &str = "large";
/// Most files kept, and their most bytes: some evidence, but not a second spool.
const COUNT_MAX: usize = 8;
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Keeps the file `path` under the suffix in the same folder, and deletes the oldest past the bounds. The file itself
/// stays.
pub(super) fn keep(path: &Path) -> io::Result<PathBuf> {
    let kept = path.with_extension(EXTENSION);
    match fs::hard_link(path, &kept) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if let Some(folder) = path.parent() {
        prune(folder)?;
    }
    Ok(kept)
}

/// Deletes all kept files: on a full disk, results come first. Returns whether there were any.
pub(super) fn release(folder: &Path) -> bool {
    let mut has_released = false;
    for path in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = path.path();
        if path.extension().is_some_and(|suffix| suffix == EXTENSION) {
            has_released |= fs::remove_file(path).is_ok();
        }
    }
    has_released
}

/// Deletes the oldest files past the bounds. Names sort as sequences do, so the last ones are the newest.
fn prune(folder: &Path) -> io::Result<()> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == EXTENSION) {
            kept.push((fs::metadata(&path)?.len(), path));
        }
    }
    kept.sort_by(|left, right| right.1.cmp(&left.1));
    let mut total = 0;
    for (index, (bytes, path)) in kept.into_iter().enumerate() {
        total += bytes;
        if index >= COUNT_MAX || total > BYTES_MAX {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| {
            let name = entry.unwrap().file_name();
            name.to_string_lossy().into_owned()
        });
        let mut names: Vec<_> = names.filter(|name| name.ends_with(EXTENSION)).collect();
        names.sort_unstable();
        names
    }

    /// Goal: the newest few are kept, none that is too large alone, and doing it twice changes nothing.
    #[test]
    fn the_newest_few_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes| {
            let path = folder.path().join(name);
            let file = fs::File::create(&path).unwrap();
            file.set_len(bytes).unwrap();
            path
        };
        for number in 10..20 {
            let path = file(&format!("{number}.result"), 5);
            keep(&path).unwrap();
            keep(&path).unwrap();
            assert!(path.exists());
        }
        let expected: Vec<_> = (12..20).map(|number| format!("{number}.large")).collect();
        assert_eq!(names(folder.path()), expected);
        assert!(release(folder.path()) && !release(folder.path()));
        assert!(names(folder.path()).is_empty());
        keep(&file("20.result", BYTES_MAX + 1)).unwrap();
        assert!(names(folder.path()).is_empty());
    }
}
