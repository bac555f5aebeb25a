//! How this process reaches a rack: questions to its supervisor, connections to its servers.

use crate::error::{Attempt, Error, Result};
use crate::plan::{Ask, Places, Say};
use crate::socket;
use crate::wire;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// A restart boots a server; everything else is quick.
const ANSWER_LIMIT: Duration = Duration::from_secs(240);

/// The way to a rack. Cheap to clone; holds no connection.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// The state folder, for messages.
    pub state: PathBuf,
    /// The supervisor's socket.
    pub socket: PathBuf,
}

impl Link {
    pub fn new(state: PathBuf) -> Self {
        let socket = Places::new(&state).socket();
        Self { state, socket }
    }

    /// Asks the supervisor.
    pub fn ask(&self, ask: &Ask) -> Result<(Say, UnixStream)> {
        self.ask_within(ask, ANSWER_LIMIT)
    }

    /// Asks the supervisor, who may hang.
    pub fn ask_within(&self, ask: &Ask, limit: Duration) -> Result<(Say, UnixStream)> {
        let mut stream =
            socket::connect(&self.socket).map_err(|_| Error::Down { state: self.state.clone() })?;
        let wrong = || "ask the rack's supervisor".to_owned();
        stream.set_read_timeout(Some(limit)).attempt(wrong)?;
        wire::send_message(&mut stream, ask).attempt(wrong)?;
        match wire::receive_message(&mut stream).attempt(wrong)? {
            Say::Failed { message } => Err(Error::Rack(message)),
            say => Ok((say, stream)),
        }
    }

    /// A connection to a server's agent. The supervisor makes it: this process is not in the rack's network.
    pub fn connect(&self, server: usize) -> Result<TcpStream> {
        let (_, stream) = self.ask(&Ask::Connect { server })?;
        let fd = socket::receive_descriptor(&stream)
            .attempt(|| format!("get a connection to server-{server}"))?;
        Ok(TcpStream::from(fd))
    }
}
