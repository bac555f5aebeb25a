//! Files and directories that are on disk when this says so.

use crate::error::{ReleaseError, Result, system};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Names in a directory, sorted; none if there is no directory.
pub(super) fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(system("read", directory))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(system("read", directory))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

pub(super) fn random() -> Result<String> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| ReleaseError::Key("the system gives no random bytes".to_owned()))?;
    Ok(bytes.map(|byte| format!("{byte:02x}")).concat())
}

/// Makes a directory that all may read, and its parents, whatever this process's mask is.
pub(super) fn make_directory(path: &Path) -> Result {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    let made = fs::DirBuilder::new().mode(0o755).create(path);
    let made = made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)));
    made.map_err(system("make", path))
}

pub(super) fn create(path: &Path, mode: u32) -> Result<File> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let file = file.and_then(|file| {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        Ok(file)
    });
    file.map_err(system("make", path))
}

pub(super) fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result {
    let mut file = create(path, mode)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(system("write", path))
}

pub(super) fn sync(directory: &Path) -> Result {
    File::open(directory).and_then(|file| file.sync_all()).map_err(system("flush", directory))
}

/// Removes what an unfinished installation or removal has left: a directory, or a link.
pub(super) fn remove(path: &Path) -> Result {
    let removed = match fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    removed.map_err(system("remove", path))
}
