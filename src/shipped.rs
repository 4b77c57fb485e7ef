//! The files that ship with Vogeler, in the program itself: the commented configuration, plugin files, design documents.
//!
//! One binary is enough to set up broker and store. Files on disk come first; these are used if there are none.
//! Invariant: they equal those of `etc/vogeler`; a test checks it.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// A file that ships.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// Its path below `/etc/vogeler`.
    pub path: &'static str,
    /// Its content.
    pub text: &'static str,
}

macro_rules! shipped {
    ($($path:literal,)+) => {
        &[$(File {
            path: $path,
            text: include_str!(concat!("../etc/vogeler/", $path)),
        },)+]
    };
}

/// All of them, by path.
pub static FILES: &[File] = shipped![
    "_design/items/autoupdate.json",
    "_design/items/views/by_plugin/map.js",
    "_design/items/views/by_plugin/reduce.js",
    "_design/packages/autoupdate.json",
    "_design/packages/views/by_name/map.js",
    "_design/plugins/autoupdate.json",
    "_design/plugins/views/by_collected/map.js",
    "_design/values/autoupdate.json",
    "_design/values/views/by_plugin/map.js",
    "plugins/facts.cfg",
    "plugins/packages.cfg",
    "plugins/system.cfg",
    "vogeler.toml",
];

/// The files of one folder, with their paths below it.
pub fn below(folder: &str) -> impl Iterator<Item = File> {
    FILES.iter().filter_map(move |file| {
        let path = file.path.strip_prefix(folder)?.strip_prefix('/')?;
        Some(File {
            path,
            text: file.text,
        })
    })
}

/// The outcome of laying down a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Laid {
    /// It was not there.
    Written,
    /// It was there, with the same content.
    Same,
    /// It was there with other content, and stays as it is.
    Kept,
    /// It was there with other content, which is gone.
    Replaced,
}

impl File {
    /// Lays the file down below `folder`. Replaces a file with other content only with `force`. The configuration may
    /// later hold passwords, so others may not read it.
    pub fn lay_down(&self, folder: &Path, force: bool) -> io::Result<Laid> {
        let path = folder.join(self.path);
        let laid = match fs::read(&path) {
            Ok(there) if there == self.text.as_bytes() => return Ok(Laid::Same),
            Ok(_) if !force => return Ok(Laid::Kept),
            Ok(_) => Laid::Replaced,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Laid::Written,
            Err(error) => return Err(error),
        };
        if let Some(parent) = path.parent() {
            // The mode does not depend on a loose umask: the client refuses plugins in folders that others may write.
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o755).create(parent)?;
        }
        let mode = if self.path == CONFIGURATION {
            0o640
        } else {
            0o644
        };
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).mode(mode);
        let mut file = options.open(&path)?;
        // A file that was there and open to others is closed to them before it gets its content.
        let found = file.metadata()?.permissions().mode();
        file.set_permissions(Permissions::from_mode(found & mode))?;
        file.set_len(0)?;
        file.write_all(self.text.as_bytes())?;
        Ok(laid)
    }
}

const CONFIGURATION: &str = "vogeler.toml";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    fn on_disk(folder: &Path, below: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                on_disk(&path, below, found);
            } else {
                let name = path.strip_prefix(below).unwrap().display().to_string();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }

    /// Goal: the files in the program are exactly those in the folder.
    #[test]
    fn what_ships_is_the_folder() {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/etc/vogeler"));
        let mut found = BTreeMap::new();
        on_disk(&folder, &folder, &mut found);
        let shipped = FILES.iter();
        let shipped: BTreeMap<_, _> = shipped
            .map(|file| (file.path.to_owned(), file.text.to_owned()))
            .collect();
        assert_eq!(shipped, found);
        assert!(FILES.is_sorted_by_key(|file| file.path));
        assert_eq!(below("plugins").count(), 3);
        assert_eq!(below("plugins").next().unwrap().path, "facts.cfg");
    }

    /// Goal: an operator's file is kept unless `force` is set, and others cannot read the configuration.
    #[test]
    fn what_is_there_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = File {
            path: CONFIGURATION,
            text: "ours",
        };
        let lay = |force| file.lay_down(folder.path(), force).unwrap();
        assert_eq!(lay(false), Laid::Written);
        assert_eq!(lay(true), Laid::Same);
        let path = folder.path().join(CONFIGURATION);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o027, 0);
        fs::write(&path, "theirs").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(lay(false), Laid::Kept);
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(lay(true), Laid::Replaced);
        assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o027, 0);
    }
}
