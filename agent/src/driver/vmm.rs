//! A VMM as the driver has it: found again, followed, asked to stop.

use super::Told;
use crate::executor::{Executor, describe, log_end};
use crate::instance::Event;
use crate::places::Vm;
use crate::process::{Exit, Identity, Watched};
use crate::record::Run;
use bixi_api::agent::Ending;
use bixi_api::client::ControlClient;
use bixi_api::compute::{VmDescription, VmState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// How often a VMM that starts is asked whether its guest runs.
const LOOK: Duration = Duration::from_millis(20);
/// How long a VMM may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The VMM of a record, if that very process is still there; whether it ever had its permission; and what is to be said if it
/// is gone.
pub(super) fn find(
    executor: &Executor,
    id: &str,
    run: Option<&Run>,
) -> (Option<Arc<Watched>>, bool, Ending) {
    let Some(run) = run else { return (None, false, Ending::Unseen) };
    if run.boot_id != executor.boot_id {
        // What says whether it had begun is gone with that boot; it is taken for one that had.
        return (None, true, Ending::ServerRestarted);
    }
    (watch(run), has_launched(&executor.places.vm(id)), Ending::Unseen)
}

/// Watches the process of `run`, if it is still there.
pub(super) fn watch(run: &Run) -> Option<Arc<Watched>> {
    let identity = Identity { pid: run.pid, start: run.start };
    match Watched::new(identity) {
        Ok(watched) => watched.map(Arc::new),
        Err(error) => {
            tracing::error!(pid = run.pid, %error, "a VMM cannot be watched");
            None
        }
    }
}

fn has_launched(vm: &Vm) -> bool {
    std::fs::metadata(vm.launched()).is_ok_and(|meta| meta.len() > 0)
}

/// Tells the driver when the guest of this VMM runs, and when the VMM has ended.
pub(super) fn follow(
    executor: &Executor,
    id: &str,
    run: Run,
    vmm: Arc<Watched>,
    told: mpsc::UnboundedSender<Told>,
) {
    let (vm, id) = (executor.places.vm(id), id.to_owned());
    tokio::spawn(async move {
        let up = async {
            let client = ControlClient::new(vm.control()).with_deadline(ANSWER);
            loop {
                let asked = client.get::<VmDescription>("/v1/vm").await;
                if asked.is_ok_and(|vm| matches!(vm.state, VmState::Running | VmState::Paused)) {
                    break;
                }
                sleep(LOOK).await;
            }
            let _ = told.send(Told::Up { id: id.clone(), run: run.clone() });
            std::future::pending::<()>().await;
        };
        let exit = tokio::select! {
            exit = vmm.ended() => exit,
            () = up => return,
        };
        let ending = match exit {
            Exit::Code(0) => Ending::PoweredOff,
            Exit::Code(code) => failed(&vm, &format!("exit code {code}")),
            Exit::Signal(signal) => failed(&vm, &format!("signal {signal}")),
            Exit::Unknown => Ending::Unseen,
        };
        let event = Event::Exited { launched: has_launched(&vm), ending };
        let _ = told.send(Told::Exited { id, run, event });
    });
}

fn failed(vm: &Vm, how: &str) -> Ending {
    Ending::Failed { reason: format!("{how}: {}", log_end(&vm.log())) }
}

/// Ends a VMM at once.
pub(super) fn kill(id: &str, vmm: Option<&Watched>) {
    if let Some(vmm) = vmm
        && let Err(error) = vmm.kill()
    {
        tracing::error!(instance = id, %error, "a VMM cannot be ended");
    }
}

/// Presses a guest's power button. That it does not listen is seen at the deadline.
pub(super) fn press(executor: &Executor, id: &str) {
    let client = ControlClient::new(executor.places.vm(id).control()).with_deadline(ANSWER);
    let id = id.to_owned();
    tokio::spawn(async move {
        if let Err(error) = client.put::<VmDescription>("/v1/vm/power-button", &()).await {
            let error = describe(&error);
            tracing::warn!(instance = id, error, "the power button cannot be pressed");
        }
    });
}
