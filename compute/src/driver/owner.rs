//! The owner's loop: select the next event, apply it.

use super::build::{BuildError, Built};
use super::control::{Answer, Asked, QUEUE, Reply};
use super::policy::{Policy, Request, Verdict};
use super::{DriverError, Signals, description, report};
use crate::board::clock::{Clock, HostClock};
use crate::config::Checked;
use crate::device::{Device, QuiesceError};
use crate::doorbell::{Doorbell, Ring, Rings};
use crate::machine::MachineError;
use bixi_api::compute::VmState;
use bixi_offload::control::Refusal;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

/// How long the vCPUs may take to stand still at the very end.
const LAST_PARK: Duration = Duration::from_secs(2);
/// How often a reset that waits for a device says so.
const STILL_WAITING: Duration = Duration::from_secs(5);

/// Everything stands still, or does not.
type Stillness = Result<Vec<QuiesceError>, MachineError>;

/// On the way to it.
type StandingStill = Pin<Box<dyn Future<Output = Stillness> + Send>>;

/// What waits for everything to stand still.
enum Pending {
    Pause(Reply),
    Reset { reply: Option<Reply>, then_run: bool },
}

/// Something happened.
enum Event {
    Asked(Asked),
    Rang(Rings),
    Timer,
    Still(Stillness),
    Signal,
    Left,
}

/// Whether the loop goes on.
enum Next {
    GoOn,
    End(Result<(), DriverError>),
}

/// The doorbell's descriptor in the runtime.
struct BellFd(Arc<Doorbell>);

impl AsRawFd for BellFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.event().as_raw_fd()
    }
}

/// The owner of one VM.
pub(super) struct Owner {
    checked: Checked,
    built: Built,
    policy: Arc<Policy>,
    leave: Arc<Notify>,
    bell: AsyncFd<BellFd>,
    clock: HostClock,
    /// When a device of the board wants to be called, on the board's clock.
    timer_ns: Option<u64>,
    since: Option<Instant>,
    pending: Option<(Pending, StandingStill)>,
    /// Requests that came while something was pending, oldest first; bounded by [`QUEUE`].
    later: VecDeque<Asked>,
}

impl Owner {
    pub(super) fn new(
        checked: &Checked,
        built: Built,
        policy: Arc<Policy>,
        leave: Arc<Notify>,
    ) -> io::Result<Self> {
        let bell = BellFd(Arc::clone(&built.machine.around().bell));
        // SAFETY: the doorbell owns its descriptor and lives as long as the registration, which holds a reference.
        let bell = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)?;
        let mut checked = checked.clone();
        for (disk, queues) in checked.config.disks.iter_mut().zip(&built.disk_queues) {
            disk.queues = Some(*queues);
        }
        for nic in &mut checked.config.nics {
            nic.queue_pairs = Some(nic.queue_pairs.unwrap_or(1));
        }
        let clock = HostClock;
        let (timer_ns, since, pending, later) = (None, None, None, VecDeque::new());
        Ok(Self { checked, built, policy, leave, bell, clock, timer_ns, since, pending, later })
    }

    /// Runs the VM to its end.
    pub(super) async fn run(
        &mut self,
        requests: &mut mpsc::Receiver<Asked>,
        signals: &mut Signals,
    ) -> Result<(), DriverError> {
        if self.checked.config.autostart {
            self.start();
        }
        loop {
            let event = self.next(requests, signals).await?;
            if let Next::End(result) = self.apply(event) {
                self.policy.set(VmState::Stopped);
                return result;
            }
        }
    }

    async fn next(
        &mut self,
        requests: &mut mpsc::Receiver<Asked>,
        signals: &mut Signals,
    ) -> Result<Event, DriverError> {
        let now = self.clock.monotonic_ns();
        let timer = self.timer_ns.map(|at| Duration::from_nanos(at.saturating_sub(now)));
        let timer = async {
            match timer {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        let idle = self.pending.is_none();
        if idle && let Some(asked) = self.later.pop_front() {
            return Ok(Event::Asked(asked));
        }
        let still = async {
            match &mut self.pending {
                Some((_, still)) => still.await,
                None => std::future::pending().await,
            }
        };
        Ok(tokio::select! {
            () = signals.recv() => Event::Signal,
            () = self.leave.notified() => Event::Left,
            still = still => Event::Still(still),
            ready = self.bell.readable(), if idle => {
                ready.map_err(DriverError::Runtime)?.clear_ready();
                Event::Rang(self.bell.get_ref().0.take())
            }
            () = timer, if idle => Event::Timer,
            Some(asked) = requests.recv() => Event::Asked(asked),
        })
    }

    fn apply(&mut self, event: Event) -> Next {
        match event {
            Event::Signal => {
                tracing::info!("stopping by a signal");
                Next::End(Ok(()))
            }
            Event::Left => {
                tracing::info!("stopping, since its operator left the terminal");
                Next::End(Ok(()))
            }
            Event::Rang(rings) => self.rang(rings),
            Event::Timer => {
                self.built.machine.board().timed().iter().for_each(|device| device.on_timer());
                self.set_timer();
                Next::GoOn
            }
            Event::Asked(asked) => self.asked(asked),
            Event::Still(stillness) => match self.pending.take() {
                Some((pending, _)) => self.still(pending, stillness),
                None => Next::GoOn,
            },
        }
    }

    fn rang(&mut self, rings: Rings) -> Next {
        if rings.contains(Ring::PowerOff) {
            tracing::info!("the guest has powered off");
            return Next::End(Ok(()));
        }
        if rings.contains(Ring::VcpuFailed) {
            let vcpus = self.built.machine.vcpus();
            let failed = vcpus.iter().find_map(|vcpu| Some((vcpu.index(), vcpu.take_failure()?)));
            if let Some((index, failure)) = failed {
                return Next::End(Err(DriverError::Guest { index, failure }));
            }
        }
        if rings.contains(Ring::Reset) {
            tracing::info!("the guest resets");
            // It may have asked in the instant before a pause: then it is reset, and still paused.
            let then_run = self.policy.state() == VmState::Running;
            self.stand_still(Pending::Reset { reply: None, then_run });
        }
        if rings.contains(Ring::Timers) {
            self.set_timer();
        }
        Next::GoOn
    }

    fn set_timer(&mut self) {
        let timed = self.built.machine.board().timed();
        self.timer_ns = timed.iter().filter_map(|device| device.next_timer_ns()).min();
    }

    fn asked(&mut self, Asked { request, reply }: Asked) -> Next {
        // What takes time may take for ever, if a back end hangs: one can look, and end it, but all else comes after it.
        let now = matches!(request, Request::Describe | Request::Statistics | Request::Stop);
        if self.pending.is_some() && !now {
            if self.later.len() < QUEUE {
                self.later.push_back(Asked { request, reply });
            } else {
                let refusal = Refusal::conflict("Busy", "Too many requests wait.", "Try again.");
                answer(reply, Err(refusal));
            }
            return Next::GoOn;
        }
        match self.policy.check(request) {
            Err(refusal) => answer(reply, Err(refusal)),
            Ok(Verdict::Nothing) => self.describe_to(reply),
            Ok(_) => return self.do_request(request, reply),
        }
        Next::GoOn
    }

    fn do_request(&mut self, request: Request, reply: Reply) -> Next {
        match request {
            Request::Describe => self.describe_to(reply),
            Request::Statistics => {
                let machine = &self.built.machine;
                let uptime = self.since.map(|since| since.elapsed());
                let statistics = report::statistics(
                    &self.checked.config,
                    machine.ram(),
                    machine.vcpus(),
                    uptime,
                );
                answer(reply, Ok(Answer::Statistics(Box::new(statistics))));
            }
            Request::Start | Request::Resume => {
                self.start();
                self.describe_to(reply);
            }
            Request::Pause => self.stand_still(Pending::Pause(reply)),
            Request::PowerButton => {
                self.built.machine.board().pm.press_power_button();
                self.describe_to(reply);
            }
            Request::Reset => {
                let then_run = self.policy.state() == VmState::Running;
                self.stand_still(Pending::Reset { reply: Some(reply), then_run });
            }
            Request::Stop => {
                tracing::info!("stopping by request");
                self.policy.set(VmState::Stopped);
                self.describe_to(reply);
                return Next::End(Ok(()));
            }
        }
        Next::GoOn
    }

    fn start(&mut self) {
        self.built.machine.run();
        self.since.get_or_insert_with(Instant::now);
        self.policy.set(VmState::Running);
    }

    /// Calls the vCPUs back, then brings the devices to rest; `pending` goes on when that is done.
    fn stand_still(&mut self, pending: Pending) {
        let parking = self.built.machine.parking();
        let resets = matches!(pending, Pending::Reset { .. });
        let name = |path: &str, device: &dyn Device| {
            device.describe().map_or_else(|| path.to_owned(), |device| device.id)
        };
        let devices = self.built.machine.devices();
        let devices: Vec<_> =
            devices.map(|(path, device)| (name(path, &*device), device)).collect();
        let still = async move {
            parking.await?;
            let mut quiescing = JoinSet::new();
            for (name, device) in devices {
                quiescing.spawn(async move {
                    match resets {
                        true => rest_for_reset(&name, &*device).await,
                        false => device.quiesce().await,
                    }
                });
            }
            let mut failed = Vec::new();
            while let Some(done) = quiescing.join_next().await {
                match done {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => failed.push(error),
                    Err(_) => failed.push(QuiesceError {
                        device: "a device".to_owned(),
                        what: "its task died".to_owned(),
                    }),
                }
            }
            Ok(failed)
        };
        self.pending = Some((pending, Box::pin(still)));
    }

    fn still(&mut self, pending: Pending, stillness: Stillness) -> Next {
        match pending {
            Pending::Pause(reply) => {
                self.paused(reply, stillness);
                Next::GoOn
            }
            Pending::Reset { reply, then_run } => self.reset(reply, then_run, stillness),
        }
    }

    fn paused(&mut self, reply: Reply, stillness: Stillness) {
        let failure = match stillness {
            Ok(failed) => failed.first().map(ToString::to_string),
            Err(error) => Some(error.to_string()),
        };
        if let Some(failure) = failure {
            // What stands goes on: a pause happens whole or not at all.
            self.built.machine.run();
            let refusal = Refusal::failed("PauseFailed", format!("{failure}."), "Try again.");
            return answer(reply, Err(refusal));
        }
        for vcpu in self.built.machine.vcpus() {
            vcpu.with(|vcpu| vcpu.told_of_pause());
        }
        self.policy.set(VmState::Paused);
        self.describe_to(reply);
    }

    fn reset(&mut self, reply: Option<Reply>, then_run: bool, stillness: Stillness) -> Next {
        match stillness {
            // Somebody may write to guest memory still: what is loaded there now could be overwritten.
            Ok(failed) => {
                if let Some(error) = failed.into_iter().next() {
                    return Next::End(Err(DriverError::Reset(error)));
                }
            }
            Err(error) => return Next::End(Err(BuildError::from(error).into())),
        }
        // What rang before the reset belongs to the time before it, but a power-off is a power-off.
        let rings = self.bell.get_ref().0.take();
        if rings.contains(Ring::PowerOff) || rings.contains(Ring::VcpuFailed) {
            return self.rang(rings);
        }
        let machine = &self.built.machine;
        let again = machine.reset().map_err(BuildError::from).and_then(|()| self.built.load(false));
        if let Err(error) = again {
            return Next::End(Err(error.into()));
        }
        if then_run {
            self.built.machine.run();
        }
        self.set_timer();
        if let Some(reply) = reply {
            self.describe_to(reply);
        }
        Next::GoOn
    }

    fn describe_to(&self, reply: Reply) {
        let devices = self.built.machine.devices().filter_map(|(_, device)| device.describe());
        let description = description(&self.checked, self.policy.state(), devices.collect());
        answer(reply, Ok(Answer::Description(Box::new(description))));
    }

    /// Ends the vCPUs. Device tasks go on meanwhile, so that no vCPU waits for one in vain.
    pub(super) async fn end(self) {
        let parking = self.built.machine.parking();
        if !matches!(tokio::time::timeout(LAST_PARK, parking).await, Ok(Ok(()))) {
            tracing::error!("a vCPU does not stop; the process ends without waiting for it");
            // Joining its thread would wait for ever.
            std::mem::forget(self.built);
        }
    }
}

/// Waits until `device` is at rest, and says so while it is not: the guest stands still meanwhile.
async fn rest_for_reset(name: &str, device: &dyn Device) -> Result<(), QuiesceError> {
    let mut resting = device.quiesce_fully();
    loop {
        match tokio::time::timeout(STILL_WAITING, &mut resting).await {
            Ok(rested) => return rested,
            Err(_) => tracing::warn!(
                device = name,
                "the reset waits for this device: its back end has not finished what it writes to guest memory; \
                 look after that process, or end it"
            ),
        }
    }
}

/// Sends an answer; who asked may have gone.
fn answer(reply: Reply, answer: Result<Answer, Refusal>) {
    let _ = reply.send(answer);
}
