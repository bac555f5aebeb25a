//! A `bixi-cloud` that runs just long enough to make its state.

use super::{Init, try_to_ask};
use crate::failure::Failure;
use crate::output::printable;
use crate::profile::Profile;
use bixi_api::operator::OperatorClient;
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

/// How long the cloud may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// A bixi-cloud that is ended when this is dropped.
pub(super) struct Running {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Running {
    /// Starts it.
    pub(super) fn start(init: &Init) -> Result<Self, Failure> {
        let log = tempfile::NamedTempFile::new();
        let log = log.map_err(|e| Failure::system("make a file for bixi-cloud's log", e))?;
        let stderr = log.reopen().map_err(|e| Failure::system("open bixi-cloud's log", e))?;
        let program = init.program();
        let mut process = Process::new(&program);
        process
            .arg("serve")
            .args(init.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let failed = |e| {
            let what = format!("start {} (name it with --program)", program.display());
            Failure::system(what, e)
        };
        Ok(Self { child: process.spawn().map_err(failed)?, log })
    }

    /// Waits until the cloud answers.
    pub(super) async fn answers(
        &mut self,
        init: &Init,
    ) -> Result<(Profile, OperatorClient), Failure> {
        let begun = Instant::now();
        loop {
            let ended = self.child.try_wait();
            if let Some(status) = ended.map_err(|e| Failure::system("wait for bixi-cloud", e))? {
                return Err(Failure::Failed(format!(
                    "bixi-cloud has ended ({status}): {}",
                    self.said()
                )));
            }
            let unanswered = match try_to_ask(init).await {
                Ok(answered) => return Ok(answered),
                Err(failure) => failure,
            };
            if begun.elapsed() > PATIENCE {
                let said = self.said();
                return Err(Failure::Timeout(format!(
                    "bixi-cloud does not answer: {unanswered}; {said}"
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The end of what it logged.
    fn said(&self) -> String {
        let text = std::fs::read_to_string(self.log.path()).unwrap_or_default();
        printable(&bixi_image::host::tail(&text))
    }

    /// Ends it in good order.
    pub(super) async fn end(mut self) -> Result<(), Failure> {
        let failed = |e| Failure::system("end bixi-cloud", e);
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).map_err(|e| failed(e.into()))?;
        }
        let begun = Instant::now();
        while self.child.try_wait().map_err(failed)?.is_none() {
            if begun.elapsed() > PATIENCE {
                return Err(Failure::Timeout(
                    "bixi-cloud does not end when it is told to".to_owned(),
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After a good end there is nobody to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
