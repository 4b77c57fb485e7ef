//! Whether only root, or the user that the client runs as, can have written a file: the check that sudo and cron make.
//!
//! Goes in: a path. Comes out: a reason, if somebody else could have written it. Invariant: a path passes only if
//! every folder and link on the way from `/`, and its target, belongs to one of the two users, and neither group nor
//! others may write it. A folder with the sticky bit (`/tmp`) may be on the way, since others cannot replace there
//! what belongs to one of the two. It may not be the target, since anybody can add to it.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::process::geteuid;

/// Most links that a path may lead over: the kernel's limit.
const LINKS_MAX: u32 = 40;
const ROOT: u32 = 0;
const STICKY: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Checks the target of `path`, and everything on the way there.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let path = std::path::absolute(path)
        .map_err(|error| format!("{} cannot be looked at: {error}", path.display()))?;
    let mut at = PathBuf::from("/");
    check_place(&at, false)?;
    let mut rest = components(&path);
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let Some(target) = check_place(&next, rest.is_empty())? else {
            at = next;
            continue;
        };
        links += 1;
        if links > LINKS_MAX {
            return Err(format!("{} leads over too many links", path.display()));
        }
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        rest.extend(components(&target));
    }
    Ok(())
}

/// The names in a path, the last first.
fn components(path: &Path) -> Vec<OsString> {
    let names = path
        .components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        });
    names.collect()
}

/// Checks one file, folder or link. Returns the target of a link.
fn check_place(place: &Path, is_last: bool) -> Result<Option<PathBuf>, String> {
    let unreadable = |error| format!("{} cannot be looked at: {error}", place.display());
    let metadata = place.symlink_metadata().map_err(unreadable)?;
    if metadata.is_symlink() {
        refuse_owner(place, &metadata)?;
        return place.read_link().map(Some).map_err(unreadable);
    }
    refuse_owner(place, &metadata)?;
    refuse_mode(place, &metadata, is_last)?;
    Ok(None)
}

fn refuse_owner(place: &Path, metadata: &Metadata) -> Result<(), String> {
    let (owner, own) = (metadata.uid(), geteuid().as_raw());
    if owner == ROOT || owner == own {
        return Ok(());
    }
    let place = place.display();
    Err(format!(
        "refused: {place} belongs to user {owner}, who could change it; it must belong to root or to user {own}, who the client runs as (chown root {place})"
    ))
}

fn refuse_mode(place: &Path, metadata: &Metadata, is_last: bool) -> Result<(), String> {
    let mode = metadata.mode();
    let is_harmless = metadata.is_dir() && mode & STICKY != 0 && !is_last;
    if mode & WRITABLE_BY_OTHERS == 0 || is_harmless {
        return Ok(());
    }
    let (place, mode) = (place.display(), mode & 0o7777);
    Err(format!(
        "refused: others than its owner may write {place} (mode {mode:04o}); chmod go-w {place}"
    ))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn reason(path: &Path) -> String {
        check(path).unwrap_err()
    }

    /// Goal: a file passes if nobody else may write it, a folder on the way, or a link to it. A sticky folder may be
    /// on the way, but not be the target.
    #[test]
    fn what_others_may_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        let file = inner.join("x.cfg");
        fs::create_dir(&inner).unwrap();
        fs::write(&file, "").unwrap();
        mode(&inner, 0o755);
        mode(&file, 0o644);
        assert_eq!(check(&file), Ok(()));
        for bad in [0o664, 0o646] {
            mode(&file, bad);
            assert!(reason(&file).contains("chmod go-w"), "{bad:o}");
        }
        mode(&file, 0o600);
        mode(&inner, 0o777);
        assert!(reason(&file).contains("inner (mode 0777)"));
        mode(&inner, 0o1777);
        assert_eq!(check(&file), Ok(()));
        assert!(reason(&inner).contains("(mode 1777)"));

        let link = folder.path().join("link.cfg");
        symlink("inner/../inner/x.cfg", &link).unwrap();
        assert_eq!(check(&link), Ok(()));
        mode(&inner, 0o775);
        assert!(reason(&link).contains("inner (mode 0775)"));
        let ring = folder.path().join("ring");
        symlink(&ring, &ring).unwrap();
        assert!(reason(&ring).contains("too many links"));
        assert!(reason(&folder.path().join("none")).contains("cannot be looked at"));
    }

    /// Goal: a file or link that belongs to a third user is refused. Only root can give files away to test it.
    #[test]
    fn what_belongs_to_another_is_refused() {
        if !geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.cfg");
        fs::write(&file, "").unwrap();
        mode(&file, 0o600);
        chown(&file, Some(12345), None).unwrap();
        assert!(reason(&file).contains("belongs to user 12345"));
        chown(&file, Some(0), None).unwrap();
        assert_eq!(check(&file), Ok(()));
    }
}
