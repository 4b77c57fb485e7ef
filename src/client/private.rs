//! Files and folders that only the client's user may look into, whatever its umask, and however they were created
//! before.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// Creates a folder, and the missing ones above it. The folder itself is closed to others, whether new or not.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(path)?;
    close(path, FOLDER_MODE)
}

/// Opens an empty file for writing.
pub(super) fn create_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(path)?;
    // The file may have existed, open to others.
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    Ok(file)
}

/// Writes a file whole and durably: into `beside` first, which then replaces `path`.
pub(super) fn write(path: &Path, beside: &Path, content: &[u8]) -> io::Result<()> {
    use io::Write;
    let written = (|| {
        let mut file = create_file(beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(beside, path)
    })();
    if let Err(error) = written {
        // If the disk is full, the half-written file must not keep it so.
        fs::remove_file(beside).ok();
        return Err(error);
    }
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Closes the files in a folder to others.
pub(super) fn close_files(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            close(&entry.path(), FILE_MODE)?;
        }
    }
    Ok(())
}

fn close(path: &Path, mode: u32) -> io::Result<()> {
    let found = fs::metadata(path)?.permissions().mode() & 0o7777;
    if found == mode {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}
