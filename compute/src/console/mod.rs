//! Where the serial port's bytes go to and come from.
//!
//! Output is kept in a ring ([`output::Output`]) that a guest fills without ever waiting; each sink follows with a cursor
//! at its own pace. Input is taken from its source only as fast as the guest reads it: a task holds one chunk, offers it
//! to the serial port and reads no further until all of it is taken, so that the source itself is held back and nothing
//! is lost.
//!
//! The driver opens a console before it builds the VM, so that what cannot be opened is refused early, starts it when
//! the serial port is there, and finishes it at the end, so that the last words reach their sink.

mod input;
pub mod output;
mod stream;
mod terminal;

use crate::board::serial::Serial;
use bixi_api::compute::ConsoleConfig;
use bixi_api::file::FileSource;
use bixi_offload::control::{ListenError, Listener, SocketFile};
use input::End;
use output::{Cursor, Output, Writer};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use stream::Stream;
use terminal::RawMode;
use tokio::net::UnixListener;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

/// What a sink copies at once.
const CHUNK: usize = 4096;
/// How long the last output may take to reach its sinks.
const FINISH: Duration = Duration::from_millis(500);
/// Connections to a socket console at one time.
const MAX_CLIENTS: usize = 8;

/// Why a console cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Its file or terminal cannot be opened.
    #[error("cannot open the console {what}")]
    Open {
        /// What it is.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its socket cannot be listened on.
    #[error("the console's socket: {0}")]
    Listen(#[from] ListenError),
}

/// An open console that carries nothing yet.
#[derive(Debug)]
pub struct Console {
    output: Option<Arc<Output>>,
    ends: Ends,
}

#[derive(Debug)]
enum Ends {
    Off,
    Terminal { input: OwnedFd, output: OwnedFd },
    File(OwnedFd),
    Socket { listener: std::os::unix::net::UnixListener, file: Option<SocketFile> },
}

impl Console {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(config: &ConsoleConfig) -> Result<Self, ConsoleError> {
        let failed = |what: &dyn std::fmt::Display, source| ConsoleError::Open {
            what: what.to_string(),
            source,
        };
        let ends = match config {
            ConsoleConfig::Off => return Ok(Self { output: None, ends: Ends::Off }),
            ConsoleConfig::Terminal => {
                let open =
                    |fd, write| stream::reopen(&fd, write).map_err(|e| failed(&"terminal", e));
                Ends::Terminal {
                    input: open(libc::STDIN_FILENO, false)?,
                    output: open(libc::STDOUT_FILENO, true)?,
                }
            }
            ConsoleConfig::File(source) => {
                Ends::File(open_file(source).map_err(|e| failed(source, e))?)
            }
            ConsoleConfig::Socket(source) => {
                let (listener, file) =
                    Listener::bind(source)?.into_parts().map_err(|e| failed(source, e))?;
                Ends::Socket { listener, file }
            }
        };
        Ok(Self { output: Some(Arc::default()), ends })
    }

    /// The serial port's end.
    #[must_use]
    pub fn writer(&self) -> Writer {
        Writer(self.output.clone())
    }

    /// Starts carrying. `leave` is notified when the operator leaves the terminal.
    ///
    /// # Errors
    /// A descriptor cannot be used.
    pub fn start(self, serial: Arc<Serial>, leave: Arc<Notify>) -> Result<Carrier, ConsoleError> {
        let (end, ending) = watch::channel(false);
        let mut carrier = Carrier { tasks: JoinSet::new(), end, raw: None, file: None };
        let Some(output) = self.output else { return Ok(carrier) };
        let open = |what: &str| {
            let what = what.to_owned();
            move |source| ConsoleError::Open { what, source }
        };
        match self.ends {
            Ends::Off => {}
            Ends::File(fd) => {
                let sink = Stream::new(fd).map_err(open("file"))?;
                carrier.tasks.spawn(drain_logged(output, sink, ending));
            }
            Ends::Terminal { input, output: out } => {
                let source = Stream::new(input).map_err(open("terminal"))?;
                let sink = Stream::new(out).map_err(open("terminal"))?;
                carrier.raw = RawMode::enter().map_err(open("terminal"))?;
                carrier.tasks.spawn(drain_logged(output, sink, ending.clone()));
                carrier.tasks.spawn(carry_terminal(source, serial, leave, ending));
            }
            Ends::Socket { listener, file } => {
                let listener = UnixListener::from_std(listener).map_err(open("socket"))?;
                carrier.file = file;
                carrier.tasks.spawn(accept(listener, output, serial, ending));
            }
        }
        Ok(carrier)
    }
}

/// A file to append to; a FIFO or a terminal is not waited for.
fn open_file(source: &FileSource) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    match source {
        FileSource::Path(path) => File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map(OwnedFd::from),
        FileSource::Fd(fd) if *fd < 0 => Err(io::Error::from_raw_os_error(libc::EBADF)),
        FileSource::Fd(fd) => {
            // SAFETY: the number is borrowed for this one call only, which answers EBADF if nothing is behind it.
            let borrowed = unsafe { BorrowedFd::borrow_raw(*fd) };
            let file = borrowed.try_clone_to_owned()?;
            let flags = rustix::fs::fcntl_getfl(&file)?;
            let flags = flags | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::APPEND;
            rustix::fs::fcntl_setfl(&file, flags)?;
            Ok(file)
        }
    }
}

/// A console that carries.
#[derive(Debug)]
pub struct Carrier {
    tasks: JoinSet<()>,
    end: watch::Sender<bool>,
    raw: Option<RawMode>,
    file: Option<SocketFile>,
}

impl Carrier {
    /// Lets the sinks write what is left, for a moment, and ends.
    pub async fn finish(mut self) {
        let _ = self.end.send(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(FINISH, all).await.is_err() {
            tracing::warn!("the console's last output did not reach its sink");
        }
        drop((self.raw.take(), self.file.take()));
    }
}

/// Copies output from the cursor on until the end, and then what is left.
async fn drain(
    output: &Output,
    cursor: &mut Cursor,
    sink: &Stream,
    ending: &mut watch::Receiver<bool>,
) -> io::Result<()> {
    let mut chunk = [0; CHUNK];
    loop {
        let copied = tokio::select! {
            copied = output.next(cursor, &mut chunk) => copied,
            _ = ending.wait_for(|end| *end) => break,
        };
        sink.write_all(&chunk[..copied]).await?;
    }
    write_rest(output, cursor, sink).await
}

async fn write_rest(output: &Output, cursor: &mut Cursor, sink: &Stream) -> io::Result<()> {
    let mut chunk = [0; CHUNK];
    loop {
        match output.read(cursor, &mut chunk) {
            0 => return Ok(()),
            copied => sink.write_all(&chunk[..copied]).await?,
        }
    }
}

async fn drain_logged(output: Arc<Output>, sink: Stream, mut ending: watch::Receiver<bool>) {
    let mut cursor = output.oldest();
    // A full disk must not end the console: what cannot be written is lost, and the next may fit.
    while let Err(error) = drain(&output, &mut cursor, &sink, &mut ending).await {
        tracing::warn!(%error, "console output is lost");
        if *ending.borrow() || matches!(error.kind(), io::ErrorKind::BrokenPipe) {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn carry_terminal(
    source: Stream,
    serial: Arc<Serial>,
    leave: Arc<Notify>,
    mut ending: watch::Receiver<bool>,
) {
    let end = tokio::select! {
        end = input::carry(&source, &serial, true) => end,
        _ = ending.wait_for(|end| *end) => return,
    };
    match end {
        Ok(End::Left) => leave.notify_one(),
        Ok(End::Closed) => tracing::debug!("the terminal has no more input"),
        Err(error) => tracing::warn!(%error, "the terminal's input cannot be read"),
    }
}

async fn accept(
    listener: UnixListener,
    output: Arc<Output>,
    serial: Arc<Serial>,
    mut ending: watch::Receiver<bool>,
) {
    let for_clients = ending.clone();
    let mut clients = JoinSet::new();
    // Apart, so that a guest that reads nothing keeps none out: who has gone holds no place of those who come.
    let (places, departed) =
        (Arc::new(Semaphore::new(MAX_CLIENTS)), Arc::new(Semaphore::new(MAX_CLIENTS)));
    loop {
        let accepted = tokio::select! {
            accepted = accept_one(&listener, &places) => accepted,
            Some(_) = clients.join_next() => continue,
            _ = ending.wait_for(|end| *end) => break,
        };
        match accepted {
            Ok((stream, place)) => {
                let (output, serial) = (Arc::clone(&output), Arc::clone(&serial));
                let client = Client { stream, place, departed: Arc::clone(&departed) };
                clients.spawn(serve(client, output, serial, for_clients.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a console client cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    while clients.join_next().await.is_some() {}
}

/// Accepts a client once there is a place for it. Cancel-safe.
async fn accept_one(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> io::Result<(tokio::net::UnixStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.accept().await?.0, place))
}

/// A connected client.
struct Client {
    stream: tokio::net::UnixStream,
    /// Held while it is connected.
    place: OwnedSemaphorePermit,
    /// Places for those that have gone and whose last input the guest has not read yet.
    departed: Arc<Semaphore>,
}

/// One client: it gets what is kept and what follows, and what it sends is typed. What it sent before it went is
/// typed too, unless the guest owes so to too many already.
async fn serve(
    Client { stream, place, departed }: Client,
    output: Arc<Output>,
    serial: Arc<Serial>,
    mut ending: watch::Receiver<bool>,
) {
    let fd = stream.into_std().map(OwnedFd::from);
    let stream = match fd.and_then(Stream::new) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "a console client cannot be served");
            return;
        }
    };
    let mut end = ending.clone();
    let mut cursor = output.oldest();
    let draining = drain(&output, &mut cursor, &stream, &mut ending);
    let carrying = input::carry(&stream, &serial, false);
    tokio::pin!(draining, carrying);
    let carried = tokio::select! {
        carried = &mut carrying => Some(carried),
        _ = &mut draining => None,
        () = stream.hung_up() => None,
    };
    match carried {
        // It only closed its sending side, and still gets output.
        Some(Ok(_)) => tokio::select! {
            _ = &mut draining => {}
            () = stream.hung_up() => {}
        },
        Some(Err(error)) => tracing::debug!(%error, "a console client went away"),
        None => {
            drop(place);
            let Ok(_held) = departed.try_acquire() else { return };
            tokio::select! {
                _ = &mut carrying => {}
                _ = end.wait_for(|end| *end) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::PortDevice;
    use crate::interrupts::test::TestLine;
    use std::os::unix::net::UnixStream as StdStream;
    use std::path::Path;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn serial(console: &Console) -> Arc<Serial> {
        Arc::new(Serial::new(console.writer(), Arc::new(TestLine::default())))
    }

    fn socket(path: &Path) -> Console {
        Console::open(&ConsoleConfig::Socket(FileSource::Path(path.to_owned()))).unwrap()
    }

    fn say(serial: &Serial, text: &[u8]) {
        text.iter().for_each(|byte| serial.write(0, &[*byte]));
    }

    fn hear(serial: &Serial) -> u8 {
        let mut data = [0];
        serial.read(0, &mut data);
        data[0]
    }

    #[tokio::test]
    async fn a_late_comer_reads_what_was_said_and_every_byte_it_types_arrives_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let console = socket(&path);
        let serial = serial(&console);
        say(&serial, b"before ");
        let carrier = console.start(Arc::clone(&serial), Arc::default()).unwrap();
        let mut client = UnixStream::connect(&path).await.unwrap();
        let mut text = [0; 7];
        client.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"before ");
        say(&serial, b"after");
        client.read_exact(&mut text[..5]).await.unwrap();
        assert_eq!(&text[..5], b"after");
        // More than all buffers on the way hold: the client is held back, and nothing is lost.
        let typed: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut reads, mut writes) = client.into_split();
        let to_type = typed.clone();
        let typing = tokio::spawn(async move {
            writes.write_all(&to_type).await.unwrap();
            writes
        });
        let mut heard = Vec::with_capacity(typed.len());
        let mut status = [0];
        while heard.len() < typed.len() {
            serial.read(5, &mut status);
            if status[0] & 1 != 0 {
                heard.push(hear(&serial));
            } else {
                tokio::task::yield_now().await;
            }
        }
        assert!(heard == typed, "input is not what was typed");
        drop(typing.await.unwrap());
        // It closed its sending side only, and hears on.
        say(&serial, b"still");
        reads.read_exact(&mut text[..5]).await.unwrap();
        carrier.finish().await;
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_holds_up_neither_the_guest_nor_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let console = socket(&path);
        let serial = serial(&console);
        let carrier = console.start(Arc::clone(&serial), Arc::default()).unwrap();
        let deaf = StdStream::connect(&path).unwrap();
        let mut client = UnixStream::connect(&path).await.unwrap();
        let mut heard = 0;
        for _ in 0..100 {
            say(&serial, &[b'x'; 10_000]);
            let mut chunk = vec![0; 10_000];
            client.read_exact(&mut chunk).await.unwrap();
            heard += chunk.len();
        }
        assert_eq!(heard, 1_000_000);
        drop(deaf);
        carrier.finish().await;
    }

    #[tokio::test]
    async fn operators_who_left_a_guest_that_reads_nothing_keep_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let console = socket(&path);
        let serial = serial(&console);
        let carrier = console.start(Arc::clone(&serial), Arc::default()).unwrap();
        say(&serial, b"hello");
        for _ in 0..3 * MAX_CLIENTS {
            let mut client = UnixStream::connect(&path).await.unwrap();
            let mut text = [0; 5];
            let heard = client.read_exact(&mut text);
            tokio::time::timeout(Duration::from_secs(20), heard).await.unwrap().unwrap();
            client.write_all(&[b'x'; 5000]).await.unwrap();
        }
        carrier.finish().await;
    }

    #[tokio::test]
    async fn a_file_gets_everything_to_the_last_word() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "old\n").unwrap();
        let console = Console::open(&ConsoleConfig::File(FileSource::Path(path.clone()))).unwrap();
        let serial = serial(&console);
        let carrier = console.start(Arc::clone(&serial), Arc::default()).unwrap();
        say(&serial, &[b'x'; 9000]);
        say(&serial, b"the end");
        carrier.finish().await;
        let text = std::fs::read(&path).unwrap();
        assert!(text.starts_with(b"old\nxxx") && text.ends_with(b"xthe end"));
        assert_eq!(text.len(), 4 + 9000 + 7);
    }

    #[test]
    fn what_cannot_be_opened_is_said() {
        let open = |config| Console::open(&config).unwrap_err().to_string();
        let gone = FileSource::Path("/nowhere/at/all".into());
        assert!(open(ConsoleConfig::File(gone.clone())).contains("/nowhere/at/all"));
        assert!(open(ConsoleConfig::Socket(gone)).contains("console's socket"));
        assert!(open(ConsoleConfig::File(FileSource::Fd(-1))).contains("descriptor -1"));
    }
}
