//! What is known and not kept: who was heard when, how far things are, which consoles are waited for.
//!
//! A cloud that is started anew knows none of it until the next reports: that is right, since it is not so old.

use crate::model::{Task, View};
use crate::plan::progress;
use bixi_api::agent::{ObservedInstance, Report, WantedStream};
use hyper::upgrade::Upgraded;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A server that was not heard for so long gets nothing new.
const SILENCE: Duration = Duration::from_secs(30);

/// What a server told last, and when.
#[derive(Debug, Clone)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// What.
    pub report: Report,
}

/// Somebody waits for a console.
#[derive(Debug)]
pub struct Waiting {
    /// The server that is to open the stream.
    pub server: String,
    /// Whose console.
    pub instance: String,
    /// Who gets the server's end.
    pub taker: oneshot::Sender<Upgraded>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Live {
    heard: BTreeMap<String, Heard>,
    streams: BTreeMap<String, Waiting>,
    /// The most that was shown of each task.
    shown: RefCell<BTreeMap<String, u8>>,
}

impl Live {
    /// Notes a report.
    pub fn hear(&mut self, server: &str, report: Report) {
        self.heard.insert(server.to_owned(), Heard { at: Instant::now(), report });
    }

    /// Notes a sign of life without news.
    pub fn lives(&mut self, server: &str) {
        if let Some(heard) = self.heard.get_mut(server) {
            heard.at = Instant::now();
        }
    }

    /// What a server told last.
    pub fn heard(&self, server: &str) -> Option<&Heard> {
        self.heard.get(server)
    }

    /// Servers that were heard lately.
    pub fn alive(&self) -> BTreeSet<String> {
        let lately = self.heard.iter().filter(|(_, heard)| heard.at.elapsed() < SILENCE);
        lately.map(|(server, _)| server.clone()).collect()
    }

    /// What a server told last of one instance.
    pub fn instance(&self, server: &str, instance: &str) -> Option<&ObservedInstance> {
        let report = &self.heard.get(server)?.report;
        report.instances.iter().find(|observed| observed.id == instance)
    }

    /// How far a task is, in percent. It never goes back, for as long as this process lives.
    pub fn percent(&self, view: &View, task: &Task) -> u8 {
        let instance = view.instances.get(&task.instance);
        let seen = instance.and_then(|i| self.instance(&i.placement.server, &i.id));
        let now = progress::percent(task, instance.map(AsRef::as_ref), seen);
        let mut shown = self.shown.borrow_mut();
        if task.step.is_final() {
            shown.remove(&task.id);
            return now;
        }
        let most = shown.entry(task.id.clone()).or_default();
        *most = now.max(*most);
        *most
    }

    /// Forgets how far tasks were that have ended.
    pub fn forget(&mut self, active: &BTreeSet<String>) {
        self.shown.get_mut().retain(|task, _| active.contains(task));
    }

    /// Wants a console.
    pub fn want_stream(&mut self, id: String, waiting: Waiting) {
        self.streams.insert(id, waiting);
    }

    /// The stream is taken, or nobody waits any more.
    pub fn take_stream(&mut self, id: &str) -> Option<Waiting> {
        self.streams.remove(id)
    }

    /// Whether this server is to open the stream.
    pub fn is_wanted(&self, id: &str, server: &str) -> bool {
        self.streams.get(id).is_some_and(|waiting| waiting.server == server)
    }

    /// What a server is to open.
    pub fn wanted_streams(&self, server: &str) -> Vec<WantedStream> {
        let here = self.streams.iter().filter(|(_, waiting)| waiting.server == server);
        let stream = |(id, waiting): (&String, &Waiting)| WantedStream {
            id: id.clone(),
            instance: waiting.instance.clone(),
        };
        here.map(stream).collect()
    }
}
