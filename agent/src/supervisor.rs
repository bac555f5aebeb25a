//! Keeps a card process running: finds the one that is there, or starts one, and starts another when it dies.
//!
//! ```text
//!   ┌──► looking ──(its control socket answers)──► watched ──(it ended)──┐
//!   │       └─(nobody answers)─► starting ─(it answers)──────┘           │
//!   │                               └─(it ended)─► waiting ◄─────────────┘
//!   └───────────────────────────────────────────────┘
//! ```
//!
//! Invariants: the agent never ends a card process, not even when it ends itself; a second one cannot run beside the first,
//! since the control socket is listened on by one.

use crate::executor::describe;
use crate::jail::cgroup;
use crate::process::{Identity, Watched, close_inherited};
use bixi_api::client::ControlClient;
use bixi_api::error::ApiError;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// How often a process that starts is asked whether it is there.
const LOOK: Duration = Duration::from_millis(20);
/// How long the first wait after a death is, and the longest; a process that lived for longer than that starts anew.
const WAITS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(10));

/// A card process.
#[derive(Debug, Clone)]
pub struct Card {
    /// `storage` or `network`.
    pub name: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its control socket.
    pub control: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// The control group that it is to run in, where it does not stay in the agent's.
    pub group: Option<PathBuf>,
}

/// What has become of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It answers.
    Up {
        /// Its process.
        pid: u32,
        /// Its release.
        release: String,
        /// Whether the agent has started it.
        started: bool,
    },
    /// It has ended, or cannot be started.
    Down(ApiError),
}

/// Of what a card process tells about itself, the part that all have.
#[derive(serde::Deserialize)]
struct About {
    release: String,
    pid: u32,
}

/// Runs for ever; what becomes of the card goes to `changes`. Must be called inside a runtime.
pub async fn keep(card: Card, changes: mpsc::UnboundedSender<(&'static str, Change)>) {
    let mut wait = WAITS.0;
    loop {
        let begun = Instant::now();
        let ended = match one_life(&card, &changes).await {
            Ok(()) => ApiError::new(
                "CardEnded",
                format!("bixi-{} has ended: {}.", card.name, last_line(&card)),
                "The agent starts it again.",
            ),
            Err(error) => ApiError::new(
                "CardFailed",
                format!("bixi-{} cannot be run: {}.", card.name, describe(&error)),
                "The agent tries again; look at its log if this stays.",
            ),
        };
        tracing::warn!(card = card.name, %ended, "a card process is down");
        if changes.send((card.name, Change::Down(ended))).is_err() {
            return;
        }
        wait = if begun.elapsed() > WAITS.1 { WAITS.0 } else { (wait * 2).min(WAITS.1) };
        sleep(wait).await;
    }
}

/// Finds or starts the process and waits for its end.
async fn one_life(
    card: &Card,
    changes: &mpsc::UnboundedSender<(&'static str, Change)>,
) -> io::Result<()> {
    let (watched, about, started) = match find(card).await {
        Some((watched, about)) => (watched, about, false),
        None => {
            let Some((watched, about)) = start(card).await? else { return Ok(()) };
            (watched, about, true)
        }
    };
    let About { release, pid } = about;
    if !started {
        hold(card, pid);
    }
    tracing::info!(card = card.name, pid, release, started, "a card process is up");
    let _ = changes.send((card.name, Change::Up { pid, release, started }));
    watched.ended().await;
    Ok(())
}

/// The process that answers on the control socket, if one does.
async fn find(card: &Card) -> Option<(Watched, About)> {
    let stream = UnixStream::connect(&card.control).await.ok()?;
    // Whoever made the socket, as the kernel says.
    let pid = stream.peer_cred().ok()?.pid()?;
    let watched = Watched::new(Identity::of(pid)?).ok()??;
    let about = ask(card).await?;
    (about.pid.cast_signed() == pid).then_some((watched, about))
}

async fn ask(card: &Card) -> Option<About> {
    ControlClient::new(&card.control).get(&format!("/v1/{}", card.name)).await.ok()
}

/// Starts the process and waits until it answers; `None` if it ends before.
async fn start(card: &Card) -> io::Result<Option<(Watched, About)>> {
    let log = File::options().create(true).append(true).open(&card.log)?;
    let mut command = Command::new(&card.program);
    command.args(&card.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // A point at which the agent is to die means nothing to the card.
    command.env_remove(bixi_offload::failpoint::VARIABLE);
    // SAFETY: both are system calls and nothing else; they may be made between fork and exec.
    unsafe {
        command.pre_exec(|| {
            close_inherited()?;
            Ok(rustix::process::setsid().map(drop)?)
        });
    }
    let child = command.spawn()?;
    hold(card, child.id());
    let Some(identity) = Identity::of(child.id().cast_signed()) else { return Ok(None) };
    let Some(watched) = Watched::new(identity)? else { return Ok(None) };
    let answers = async {
        loop {
            // One that answers and is another has won a race for the socket; this one ends then.
            match ask(card).await.filter(|about| about.pid == child.id()) {
                Some(about) => return about,
                None => sleep(LOOK).await,
            }
        }
    };
    let answered = tokio::select! {
        about = answers => Some(about),
        _ = watched.ended() => None,
    };
    Ok(answered.map(|about| (watched, about)))
}

/// Moves the process out of the agent's control group. Where that fails it runs all the same.
fn hold(card: &Card, pid: u32) {
    if let Some(group) = &card.group
        && let Err(error) = cgroup::enter(group, pid)
    {
        let (card, group) = (card.name, group.display());
        tracing::warn!(card, %group, %error, "a card process stays out of its control group");
    }
}

fn last_line(card: &Card) -> String {
    crate::executor::log_end(&card.log)
}
