//! The thread that runs a vCPU, and the driver's handle on it.
//!
//! ```text
//!            run()                     park() or the guest ends its run
//!  parked ───────────► running ───────────────────────────► parked
//!    │                                                         │
//!    └───────────────── quit ──────────────────────────────────┘
//! ```
//!
//! A vCPU is `parked` when its thread waits for orders: no access of the guest is half done, its whole state can be
//! read and set. Orders are kept under a lock with a condition variable; the thread itself looks at one flag per exit.

use super::exits::{Exit, ExitCounters};
use super::kick;
use super::{Failure, Vcpu};
use crate::bus::{MemoryBus, PortBus};
use crate::doorbell::{Doorbell, Ring};
use crate::seccomp;
use kvm_ioctls::VcpuExit;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Enough for the run loop and the deepest device handler, of which only what is touched costs memory.
const STACK_BYTES: usize = 256 << 10;

/// What vCPU threads share: the buses and the way to the driver.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// I/O ports.
    pub ports: Arc<PortBus>,
    /// Addresses that are not memory.
    pub memory: Arc<MemoryBus>,
    /// The driver's doorbell.
    pub bell: Arc<Doorbell>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Park,
    Run,
    Quit,
}

#[derive(Debug)]
struct Gate {
    order: Order,
    parked: bool,
}

#[derive(Debug)]
struct Shared {
    index: u8,
    vcpu: Mutex<Vcpu>,
    gate: Mutex<Gate>,
    /// For the thread, and for whoever waits for it blocking.
    changed: Condvar,
    /// For who waits for it in a task.
    parked: Notify,
    /// Whether the thread shall park; looked at before every `KVM_RUN`.
    stop: AtomicBool,
    exits: ExitCounters,
    failure: Mutex<Option<Failure>>,
    around: Surroundings,
}

impl Shared {
    fn set_parked(&self, gate: &mut Gate) {
        gate.parked = true;
        self.changed.notify_all();
        self.parked.notify_waiters();
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The driver's handle on a vCPU and its thread.
#[derive(Debug)]
pub struct VcpuThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts a thread for `vcpu`, parked.
    ///
    /// # Errors
    /// No thread can be made, or it cannot take signals.
    pub fn spawn(vcpu: Vcpu, around: Surroundings) -> io::Result<Self> {
        kick::install()?;
        let index = vcpu.index();
        let shared = Arc::new(Shared {
            index,
            vcpu: Mutex::new(vcpu),
            gate: Mutex::new(Gate { order: Order::Park, parked: false }),
            changed: Condvar::new(),
            parked: Notify::new(),
            stop: AtomicBool::new(true),
            exits: ExitCounters::default(),
            failure: Mutex::new(None),
            around,
        });
        let for_thread = Arc::clone(&shared);
        let (told, ready) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(STACK_BYTES)
            .spawn(move || thread_main(&for_thread, &told))?;
        let this = Self { shared, thread: Some(thread) };
        match ready.recv() {
            Ok(Ok(())) => Ok(this),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the vCPU's thread died at its start")),
        }
    }

    /// The vCPU's index.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.shared.index
    }

    /// Lets the vCPU run.
    pub fn run(&self) {
        let mut gate = self.shared.gate();
        gate.order = Order::Run;
        gate.parked = false;
        self.shared.stop.store(false, Ordering::Release);
        self.shared.changed.notify_all();
    }

    /// Calls the vCPU back; [`VcpuThread::wait_parked`] waits for it.
    pub fn park(&self) {
        let mut gate = self.shared.gate();
        if gate.order == Order::Run {
            gate.order = Order::Park;
        }
        if !gate.parked {
            self.shared.stop.store(true, Ordering::Release);
            if let Some(thread) = &self.thread {
                kick::kick(thread);
            }
        }
    }

    /// Waits until the vCPU is parked. Returns whether it is before `deadline`.
    #[must_use]
    pub fn wait_parked(&self, deadline: Instant) -> bool {
        let mut gate = self.shared.gate();
        while !gate.parked {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(gate, left);
            gate = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The same for a task: done when the vCPU is parked.
    pub fn parked(&self) -> impl Future<Output = ()> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        async move {
            loop {
                let parked = shared.parked.notified();
                tokio::pin!(parked);
                // Registered before the look, so that a parking in between wakes.
                parked.as_mut().enable();
                if shared.gate().parked {
                    return;
                }
                parked.await;
            }
        }
    }

    /// Works on the vCPU, which should be parked: a running one is waited for.
    pub fn with<R>(&self, work: impl FnOnce(&mut Vcpu) -> R) -> R {
        work(&mut self.shared.vcpu.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its exits so far.
    #[must_use]
    pub fn exits(&self) -> &ExitCounters {
        &self.shared.exits
    }

    /// Why it cannot go on, if it cannot. Taken once.
    #[must_use]
    pub fn take_failure(&self) -> Option<Failure> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.park();
        {
            let mut gate = self.shared.gate();
            gate.order = Order::Quit;
            self.shared.changed.notify_all();
        }
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its hook and by the doorbell.
            let _ = thread.join();
        }
    }
}

/// Rings if the thread unwinds: the driver must learn that a vCPU is gone.
struct Watch<'a>(&'a Shared);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let failure = Failure::new("its thread panicked");
            *self.0.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
            self.0.set_parked(&mut self.0.gate());
            self.0.around.bell.ring(Ring::VcpuFailed);
        }
    }
}

fn thread_main(shared: &Shared, told: &std::sync::mpsc::SyncSender<io::Result<()>>) {
    let run = shared.vcpu.lock().unwrap_or_else(PoisonError::into_inner).run_page();
    // SAFETY: the page belongs to the vCPU in `shared`, which this thread keeps alive beyond the registration.
    let registration = match unsafe { kick::Registration::new(run) } {
        Ok(registration) => registration,
        Err(error) => {
            let _ = told.send(Err(error));
            return;
        }
    };
    if let Err(error) = seccomp::confine(seccomp::Kind::Vcpu) {
        let _ = told.send(Err(io::Error::other(error)));
        return;
    }
    let _ = told.send(Ok(()));
    let watch = Watch(shared);
    while wait_for_orders(shared) {
        let mut vcpu = shared.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        let result = run_until_stopped(shared, &mut vcpu);
        drop(vcpu);
        if let Err(failure) = result {
            tracing::error!(vcpu = shared.index, %failure, "a vCPU cannot go on");
            *shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
            shared.around.bell.ring(Ring::VcpuFailed);
        }
    }
    drop(watch);
    drop(registration);
}

/// Parks until there is something to run. Returns whether there is, or the thread shall end.
fn wait_for_orders(shared: &Shared) -> bool {
    let mut gate = shared.gate();
    // A vCPU that stopped by itself (power-off, reset, failure) waits for a new order to run.
    if gate.order == Order::Run && shared.stop.load(Ordering::Acquire) {
        gate.order = Order::Park;
    }
    loop {
        match gate.order {
            Order::Quit => return false,
            Order::Run => return true,
            Order::Park => {
                shared.set_parked(&mut gate);
                gate = shared.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Runs the guest until the stop flag is set and no access is half done.
fn run_until_stopped(shared: &Shared, vcpu: &mut Vcpu) -> Result<(), Failure> {
    vcpu.fd.set_kvm_immediate_exit(0);
    loop {
        // The kick sets the flag for us; set here as well, it lets KVM finish a port or memory access whose answer
        // waits in the `kvm_run` page, and return before it enters the guest.
        if shared.stop.load(Ordering::Acquire) {
            vcpu.fd.set_kvm_immediate_exit(1);
        }
        match one_exit(shared, vcpu)? {
            Exit::Interrupted if shared.stop.load(Ordering::Acquire) => return Ok(()),
            // A late kick of an earlier pause, or a foreign signal.
            Exit::Interrupted => vcpu.fd.set_kvm_immediate_exit(0),
            Exit::Shutdown => {
                shared.around.bell.ring(Ring::Reset);
                shared.stop.store(true, Ordering::Release);
                return Ok(());
            }
            Exit::IoOut | Exit::MmioWrite if shared.around.bell.is_ending() => {
                shared.stop.store(true, Ordering::Release);
            }
            _ => {}
        }
    }
}

/// Enters the guest once and answers its exit.
fn one_exit(shared: &Shared, vcpu: &mut Vcpu) -> Result<Exit, Failure> {
    let around = &shared.around;
    let exit = match vcpu.fd.run() {
        Ok(VcpuExit::IoIn(port, data)) => {
            let (pointer, len) = (data.as_mut_ptr(), data.len());
            let item = vcpu.io_item_size().min(len).max(1);
            // SAFETY: KVM's buffer for this access lies in the `kvm_run` mapping, which nobody else touches until the
            // next `KVM_RUN`; the slice ends before that.
            let data = unsafe { std::slice::from_raw_parts_mut(pointer, len) };
            data.chunks_mut(item).for_each(|item| {
                around.ports.read(u64::from(port), item);
            });
            Exit::IoIn
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            let (pointer, len) = (data.as_ptr(), data.len());
            let item = vcpu.io_item_size().min(len).max(1);
            // SAFETY: as above.
            let data = unsafe { std::slice::from_raw_parts(pointer, len) };
            data.chunks(item).for_each(|item| {
                around.ports.write(u64::from(port), item);
            });
            Exit::IoOut
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            around.memory.read(address, data);
            Exit::MmioRead
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            around.memory.write(address, data);
            Exit::MmioWrite
        }
        Ok(VcpuExit::Hlt) => Exit::Halt,
        Ok(VcpuExit::Intr) => Exit::Interrupted,
        Ok(VcpuExit::Shutdown) => Exit::Shutdown,
        Ok(VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
            around.bell.ring(Ring::PowerOff);
            shared.stop.store(true, Ordering::Release);
            Exit::Other
        }
        Ok(VcpuExit::SystemEvent(..)) => Exit::Shutdown,
        Ok(VcpuExit::InternalError) => return failed(shared, vcpu.internal_error()),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            let what =
                format!("the processor refused to enter the guest: {reason:#x} on CPU {cpu}");
            return failed(shared, Failure::new(what));
        }
        Ok(other) => {
            let what = format!("KVM returned {other:?}");
            return failed(shared, Failure::new(what));
        }
        Err(error) => match error.errno() {
            libc::EINTR => Exit::Interrupted,
            // A vCPU that waits for its start-up message was woken.
            libc::EAGAIN => Exit::Other,
            _ => {
                let what = format!("KVM_RUN failed: {error}");
                return failed(shared, Failure::new(what));
            }
        },
    };
    shared.exits.count(exit);
    Ok(exit)
}

fn failed(shared: &Shared, failure: Failure) -> Result<Exit, Failure> {
    shared.exits.count(Exit::Failed);
    shared.stop.store(true, Ordering::Release);
    Err(failure)
}
