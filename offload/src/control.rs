//! The control socket of a process: HTTP/1.1 with JSON over a UNIX stream socket.
//!
//! A service brings an axum [`Router`] whose handlers only enqueue to the process's driver; this module owns the
//! socket and the way refusals look. Invariants: every answer that is not 2xx carries the envelope of
//! `bixi_api::error`; a body is at most [`BODY_LIMIT`] bytes; the socket file has mode 0600 (0660 in a set-group-ID
//! directory, whose group may connect) and is removed when the server ends, unless another process has put its own there meanwhile.
//!
//! Called by the `main.rs` of `bixi-storage`, `bixi-network` and `bixi-vmm`.

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bixi_api::error::{ApiError, ErrorBody};
use bixi_api::file::FileSource;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

/// The most bytes a request's body may have.
pub const BODY_LIMIT: usize = 4 << 20;

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("{} is in use by a running process: stop it, or choose another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way.
    #[error("{} exists and is not a socket: remove it, or choose another path", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot listen on {what}")]
    System {
        /// The socket.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A listening UNIX socket whose file goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: StdListener,
    file: Option<SocketFile>,
}

/// The file of a socket that this process made: removed on drop, if it is still the same one.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether a living process listens at `path`. Never waits: a backlog that is full is a sign of life too.
fn is_served(path: &Path) -> bool {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let address = SocketAddrUnix::new(path);
    let connected = address.and_then(|address| {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address).map(|()| socket)
    });
    match connected {
        Ok(socket) => lives(&StdStream::from(socket)),
        Err(error) => error == rustix::io::Errno::AGAIN,
    }
}

/// Whether the process at the other end lives. One that was killed keeps its sockets for as long as the kernel waits
/// for its I/O.
fn lives(stream: &StdStream) -> bool {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(stream) else { return true };
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", peer.pid.as_raw_nonzero()));
    // None to read: it is gone, or it is not ours to see and lives.
    !read("stat").is_ok_and(|stat| is_ending(&stat))
        && !read("status").is_ok_and(|status| is_killed(&status))
}

/// Whether a process whose `stat` this is has begun to end (proc(5)).
fn is_ending(stat: &str) -> bool {
    /// Of the field `flags`: it is being shut down (linux/sched.h).
    const PF_EXITING: u64 = 0x4;
    // The name before the parenthesis may contain anything; after it come the state and, six fields on, the flags.
    let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let state = fields.next().unwrap_or_default();
    let flags = fields.nth(5).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    matches!(state, "Z" | "X") || flags & PF_EXITING != 0
}

/// Whether SIGKILL waits for a process whose `status` this is: it has not run since, and will do nothing any more.
fn is_killed(status: &str) -> bool {
    let pending = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")));
    pending
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask >> (libc::SIGKILL - 1) & 1 == 1)
}

/// Whether the directory of `path` passes its group on to what is made in it: the sign that its group may connect.
fn has_shared_group(path: &Path) -> bool {
    let directory = path.parent().and_then(|parent| std::fs::metadata(parent).ok());
    directory.is_some_and(|meta| meta.mode() & 0o2000 != 0)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

impl Listener {
    /// Listens on `source`: a path, where the socket file of a dead process is replaced and that of a living one is
    /// not, or an inherited descriptor that listens already.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind(source: &FileSource) -> Result<Self, ListenError> {
        match source {
            FileSource::Path(path) => Self::bind_path(path),
            FileSource::Fd(fd) => Self::adopt(*fd),
        }
    }

    /// Listens at `path`, replacing the socket file of a dead process.
    ///
    /// The new socket is made beside the old one and renamed over it, so that whoever connects at that instant finds
    /// either; it can be reached only by its owner, and by its directory's group if that directory is set-group-ID.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind_path(path: &Path) -> Result<Self, ListenError> {
        let fail = |source| ListenError::System { what: path.display().to_string(), source };
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(ListenError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if is_served(path) => {
                return Err(ListenError::InUse { path: path.to_owned() });
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(fail(e)),
        }
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        let _ = std::fs::remove_file(&fresh);
        let socket = StdListener::bind(&fresh).map_err(fail)?;
        let mode = if has_shared_group(path) { 0o660 } else { 0o600 };
        let ready = std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(mode))
            .and_then(|()| std::fs::rename(&fresh, path))
            .and_then(|()| identity(path));
        match ready {
            Ok(inode) => {
                Ok(Self { socket, file: Some(SocketFile { path: path.to_owned(), inode }) })
            }
            Err(e) => {
                let _ = std::fs::remove_file(&fresh);
                Err(fail(e))
            }
        }
    }

    fn adopt(fd: i32) -> Result<Self, ListenError> {
        let fail =
            |source| ListenError::System { what: format!("inherited descriptor {fd}"), source };
        // SAFETY: F_GETFD only asks whether the number names an open descriptor.
        if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(fail(io::Error::from_raw_os_error(libc::EBADF)));
        }
        // SAFETY: the descriptor is open, and by the contract of `{fd}` its number was given to this process to own.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        if !rustix::net::sockopt::socket_acceptconn(&owned).map_err(|e| fail(e.into()))? {
            return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen")));
        }
        Ok(Self { socket: StdListener::from(owned), file: None })
    }

    /// Takes the socket out, non-blocking, together with what removes its file when dropped.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn into_parts(self) -> io::Result<(StdListener, Option<SocketFile>)> {
        self.socket.set_nonblocking(true)?;
        Ok((self.socket, self.file))
    }
}

/// Serves `router` on `listener` until `end` completes; requests under way are answered first. Dropped earlier, it
/// leaves them unanswered. Either way the socket's file is gone afterwards.
///
/// # Errors
/// The listener cannot be used with the runtime.
pub async fn serve(
    listener: Listener,
    router: Router,
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (socket, _file) = listener.into_parts()?;
    let router = router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT));
    let socket = tokio::net::UnixListener::from_std(socket)?;
    axum::serve(socket, router).with_graceful_shutdown(end).await
}

async fn no_such_path(request: Request) -> Refusal {
    Refusal::not_found("NoSuchPath", format!("there is no {}.", request.uri().path()), "")
}

async fn no_such_method(request: Request) -> Refusal {
    let message = format!("{} does not take {}.", request.uri().path(), request.method());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "NoSuchMethod", message, "")
}

/// A refusal on its way out: a status and the envelope.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// What is wrong.
    pub error: ApiError,
}

impl Refusal {
    /// A refusal with this status, code, message and hint (see [`ApiError::new`]).
    pub fn new(
        status: StatusCode,
        code: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { status, error: ApiError::new(code, message, hint) }
    }

    /// What was asked for cannot be so: 400.
    pub fn bad_request(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message, hint)
    }

    /// What was asked about is not there: 404.
    pub fn not_found(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message, hint)
    }

    /// What was asked for does not go with the present state: 409.
    pub fn conflict(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message, hint)
    }

    /// The request was good, and it failed all the same: 500.
    pub fn failed(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message, hint)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, axum::Json(ErrorBody { error: self.error })).into_response()
    }
}

/// A JSON body, in and out. Bad JSON, a wrong type or an unknown field is a [`Refusal`] with serde's own words.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(refuse_body(&rejection)),
        }
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

fn refuse_body(rejection: &JsonRejection) -> Refusal {
    let hint = match rejection {
        JsonRejection::MissingJsonContentType(_) => {
            "Send the header content-type: application/json."
        }
        _ => "",
    };
    Refusal::new(rejection.status(), "BadRequest", rejection.body_text(), hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::{get, put};
    use bixi_api::client::{ClientError, ControlClient};

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Ask {
        number: u8,
    }

    fn router() -> Router {
        Router::new()
            .route("/v1/number", put(async |Json(ask): Json<Ask>| Json(ask.number)))
            .route("/v1/busy", get(async || Refusal::conflict("Busy", "it is busy.", "Wait.")))
    }

    async fn refused(answer: Result<serde_json::Value, ClientError>) -> ApiError {
        match answer {
            Err(ClientError::Refused(error)) => error,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn every_refusal_has_the_envelope() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = Listener::bind_path(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, router(), async {
            let _ = stopped.await;
        }));
        let client = ControlClient::new(&path);
        let number: u8 = client.put("/v1/number", &Ask { number: 7 }).await.unwrap();
        assert_eq!(number, 7);
        let code = |e: ApiError| e.code;
        assert_eq!(code(refused(client.get("/v1/nothing").await).await), "NoSuchPath");
        assert_eq!(code(refused(client.get("/v1/number").await).await), "NoSuchMethod");
        assert_eq!(code(refused(client.get("/v1/busy").await).await), "Busy");
        let wrong = serde_json::json!({"number": 7, "colour": 1});
        let error = refused(client.put("/v1/number", &wrong).await).await;
        assert!(error.code == "BadRequest" && error.message.contains("colour"), "{error:?}");
        let large = serde_json::json!({"text": "x".repeat(BODY_LIMIT)});
        assert_eq!(code(refused(client.put("/v1/number", &large).await).await), "BadRequest");
        drop(stop);
        server.await.unwrap().unwrap();
        assert!(!path.exists(), "the socket file stayed behind");
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        drop(StdListener::bind(&path).unwrap());
        let living = Listener::bind_path(&path).unwrap();
        assert!(matches!(Listener::bind_path(&path), Err(ListenError::InUse { .. })));
        drop(living);
        assert!(!path.exists());
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(Listener::bind_path(&path), Err(ListenError::NotASocket { .. })));
        assert!(path.exists());
    }

    #[test]
    fn a_process_that_was_killed_is_seen_at_each_step_of_its_end() {
        let stat = |state, flags| format!("7 (a) b) {state} 1 7 7 0 -1 {flags} 117 0");
        assert!(!is_ending(&stat("S", 0x40_0100)) && !is_ending(""));
        assert!(is_ending(&stat("Z", 0x40_0100)) && is_ending(&stat("D", 0x40_0104)));
        let status =
            |own, shared| format!("Name:\tx\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\n");
        assert!(!is_killed(&status(0, 0x4000)) && !is_killed(""));
        assert!(is_killed(&status(0x100, 0)) && is_killed(&status(0, 0x100)));
    }

    #[test]
    fn a_descriptor_that_does_not_listen_is_refused() {
        assert!(Listener::bind(&FileSource::Fd(-1)).is_err());
        assert!(Listener::bind(&FileSource::Fd(1 << 20)).is_err());
    }
}
