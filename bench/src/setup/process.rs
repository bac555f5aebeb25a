//! The processes of a run: pinned to a core, ended with their owner, whatever way that ends.

use super::cores::Pinned;
use crate::BenchError;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of a log that an error shows.
const SHOWN: u64 = 2000;

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` on `core`; what it prints goes to the file `log`.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(
        mut command: Command,
        core: Option<Pinned>,
        log: PathBuf,
    ) -> Result<Self, BenchError> {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        let what = || format!("start {name}");
        let out = File::create(&log).map_err(BenchError::system(what()))?;
        let err = out.try_clone().map_err(BenchError::system(what()))?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let parent = std::process::id();
        let prepare = move || {
            if let Some(core) = core {
                core.apply()?;
            }
            // The process ends with the benchmark even if that is killed. If it has been already, it ends now.
            // SAFETY: a system call with plain numbers.
            if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // SAFETY: as above.
            if unsafe { libc::getppid() } as u32 != parent {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made; nothing is allocated but an error that ends it.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn().map_err(BenchError::system(what()))?;
        Ok(Self { child, name, log })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready`, at most `within`.
    ///
    /// # Errors
    /// It ended before, or was too slow.
    pub fn wait_until(
        &mut self,
        what: &'static str,
        within: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), BenchError> {
        let deadline = Instant::now() + within;
        while !ready() {
            super::interrupt::check()?;
            let ended = self.child.try_wait().map_err(BenchError::system("watch a process"))?;
            if ended.is_some() || Instant::now() > deadline {
                return Err(self.failed(what));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits for its end, at most `within`.
    ///
    /// # Errors
    /// It ends with a failure, or not in time.
    pub fn wait_end(&mut self, within: Duration) -> Result<(), BenchError> {
        let deadline = Instant::now() + within;
        loop {
            match self.child.try_wait().map_err(BenchError::system("watch a process"))? {
                Some(status) if status.success() => return Ok(()),
                Some(_) => return Err(self.failed("end in good order")),
                None if Instant::now() > deadline => return Err(self.failed("end in time")),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// What it has printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The error that it did not do `what`.
    #[must_use]
    pub fn failed(&self, what: &'static str) -> BenchError {
        BenchError::Process { program: self.name.clone(), what, said: tail(&self.log) }
    }

    /// Asks it to end, and ends it if it does not.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(SHOWN)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_default()
}
