//! A file system of its own on a loop device or in memory, gone when dropped.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system.
pub struct Mount {
    directory: tempfile::TempDir,
    device: Option<String>,
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl Mount {
    /// ext4 of `size` bytes on a loop device with sectors of `sector` bytes; why not, if it cannot be.
    pub fn ext4(size: u64, sector: u32) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
        let image = directory.path().join("image");
        let file = std::fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(size).map_err(|e| e.to_string())?;
        let image = image.display().to_string();
        let sector = sector.to_string();
        let arguments = ["--find", "--show", "--sector-size", &sector, &image];
        let device = run("losetup", &arguments)?;
        let mount = Self { directory, device: Some(device.clone()) };
        run("mkfs.ext4", &["-q", "-b", "4096", "-m", "0", &device])?;
        std::fs::create_dir(mount.path()).map_err(|e| e.to_string())?;
        run("mount", &[&device, &mount.path().display().to_string()])?;
        Ok(mount)
    }

    /// tmpfs of `size` bytes; why not, if it cannot be.
    pub fn tmpfs(size: u64) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
        let mount = Self { directory, device: None };
        std::fs::create_dir(mount.path()).map_err(|e| e.to_string())?;
        let (options, target) = (format!("size={size}"), mount.path().display().to_string());
        run("mount", &["-t", "tmpfs", "-o", &options, "bixi-test", &target])?;
        Ok(mount)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", &self.path().display().to_string()]);
        if let Some(device) = &self.device {
            let _ = run("losetup", &["--detach", device]);
        }
    }
}

/// A file system that no write gets through to, as a device that does not answer; thawed when dropped.
pub struct Frozen(PathBuf);

impl Frozen {
    pub fn freeze(path: &Path) -> Result<Self, String> {
        run("fsfreeze", &["--freeze", &path.display().to_string()])?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = run("fsfreeze", &["--unfreeze", &self.0.display().to_string()]);
    }
}
