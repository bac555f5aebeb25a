//! The driver's handle of a worker thread.

use super::mailbox::{Order, Sender, mailbox};
use super::thread::{Loop, Note};
use super::{WorkerConfig, WorkerService};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

/// A running worker thread. Dropped, it lets the worker end its turn and waits for it.
#[derive(Debug)]
pub(crate) struct Handle<C> {
    mail: Option<Sender<C>>,
    thread: Option<JoinHandle<()>>,
}

impl<C: Send + 'static> Handle<C> {
    /// Starts a worker thread, on which `make` makes the service. Notes go to `notify`; `ended` is told why the thread
    /// ended, if that was not because the handle was dropped.
    ///
    /// # Errors
    /// No thread, a core that does not exist, or what `make` returns.
    pub fn start<S>(
        config: WorkerConfig,
        make: impl FnOnce() -> io::Result<S> + Send + 'static,
        notify: impl FnMut(Note<S::Report>) + Send + 'static,
        ended: impl FnOnce(String) + Send + 'static,
    ) -> io::Result<Self>
    where
        S: WorkerService<Command = C>,
    {
        let (sender, receiver) = mailbox()?;
        let (ready, started) = sync_channel(1);
        let name = config.name.clone();
        let body = move || {
            let made = pin(&config)
                .and_then(|()| make())
                .and_then(|service| Loop::new(&config, service, receiver, notify));
            let turn = match made {
                Ok(turn) => turn,
                Err(e) => return drop(ready.send(Err(e))),
            };
            let _ = ready.send(Ok(()));
            let run = std::panic::AssertUnwindSafe(|| turn.run());
            match std::panic::catch_unwind(run) {
                Ok(Ok(())) => {}
                Ok(Err(e)) => ended(e.to_string()),
                Err(_) => ended("it panicked".to_owned()),
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(body)?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self { mail: Some(sender), thread: Some(thread) }),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(io::Error::other("the worker panicked while it started")),
        }
    }

    /// Sends an order. An order to a worker that has ended is lost; its end was told.
    pub fn send(&self, order: Order<C>) {
        if let Some(mail) = &self.mail {
            mail.send(order);
        }
    }
}

impl<C> Drop for Handle<C> {
    fn drop(&mut self) {
        self.mail = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn pin(config: &WorkerConfig) -> io::Result<()> {
    let Some(core) = config.core else { return Ok(()) };
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no core {core}")));
    }
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}
