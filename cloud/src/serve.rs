//! Starting the process: the state directory, the authority, the store, then the listeners.
//!
//! ```text
//!   state directory/
//!     cloud.redb        the store; also says that no other process is this cloud
//!     ca/ca.pem         the authority's certificate, for clients
//!     ca/ca.key         its key, mode 0600
//!     operator.token    what operators show, mode 0600
//!     images/           the files of images
//! ```

use crate::agents::Agents;
use crate::ecs::dispatch;
use crate::ecs::service::Api;
use crate::images::Images;
use crate::model::ids::{Kernel, Source};
use crate::operator::Operator;
use crate::plan::tenancy;
use crate::refusal::Refusal;
use crate::service::{Control, ControlError, Place, now};
use crate::store::{EmbeddedStore, StoreError};
use crate::tls::{Authority, AuthorityError, Lives, Shown, keep, serve_http, serve_https};
use axum::Router;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// What the process is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The state directory.
    pub state: PathBuf,
    /// Where HTTPS is served.
    pub listen: SocketAddr,
    /// Where the tenants' API is served without TLS too, if anywhere.
    pub listen_http: Option<SocketAddr>,
    /// Names and addresses by which the cloud is reached; the first is in join tokens.
    pub names: Vec<String>,
    /// Where this cloud is, as tenants see it.
    pub place: Place,
    /// How long certificates are good.
    pub lives: Lives,
}

/// Why the process cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state directory is unusable.
    #[error("cannot use {}: {source}", path.display())]
    State {
        /// Which file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The store is unusable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority is unusable.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The control plane cannot go on.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}; is another process there?")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refuses something the process needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Runs the process until it is told to end.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(settings: &Settings) -> Result<(), ServeError> {
    let system = |what| move |source| ServeError::System { what, source };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(system("start a runtime"))?;
    let ended = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("watch for signals"))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(system("watch for signals"))?;
        let cloud = Cloud::open(settings).await?;
        tracing::info!(
            address = %cloud.address,
            authority = %cloud.authority.path().display(),
            token = %settings.state.join(TOKEN).display(),
            release = bixi_api::RELEASE,
            "serving the cloud"
        );
        tokio::select! {
            ended = cloud.run() => ended,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    });
    // Requests under way are not waited for: what was acknowledged is kept, the rest is asked for again.
    runtime.shutdown_background();
    ended
}

/// In milliseconds.
const YEAR: u64 = 365 * 24 * 3_600_000;
const DAY: Duration = Duration::from_secs(24 * 3600);
const TOKEN: &str = "operator.token";

/// A cloud that is ready to be run.
#[derive(Debug)]
pub struct Cloud {
    /// Where HTTPS is served.
    pub address: SocketAddr,
    /// The authority.
    pub authority: Arc<Authority>,
    /// The control plane.
    pub control: Arc<Control>,
    /// What operators show.
    pub token: Arc<str>,
    /// Where the tenants' API is served without TLS.
    pub address_http: Option<SocketAddr>,
    listener: TcpListener,
    http: Option<TcpListener>,
    tenants: Router,
    shown: Arc<Shown>,
    router: Router,
}

impl Cloud {
    /// Opens the state and listens; connections wait until the cloud is run.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn open(settings: &Settings) -> Result<Self, ServeError> {
        let state = &settings.state;
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| ServeError::State { path, source }
        };
        std::fs::create_dir_all(state).map_err(fail(state))?;
        // The store first: it also says that no other process is this cloud.
        let store = Arc::new(EmbeddedStore::open(&state.join("cloud.redb"))?);
        let authority = Arc::new(Authority::open(&state.join("ca"), settings.lives)?);
        let token_path = state.join(TOKEN);
        let token: Arc<str> = token(&token_path).map_err(fail(&token_path))?.into();
        let folder = state.join("images");
        let images = Images::open(&folder).map_err(fail(&folder))?;
        let control = Control::load(store, settings.place.clone()).await?;

        let (listener, address) = listen(settings.listen).await?;
        let http = match settings.listen_http {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let host = host_name();
        let mut names = settings.names.clone();
        names.extend(host.clone());
        names.push(address.ip().to_string());
        let shown = Shown::new(authority.clone(), names)?;
        let host = host.filter(|_| address.ip().is_unspecified());
        let outside = settings.names.first().or(host.as_ref());
        let outside = outside.map(|name| match name.parse() {
            Ok(ip) => SocketAddr::new(ip, address.port()).to_string(),
            Err(_) => format!("{name}:{}", address.port()),
        });
        let operator = Operator {
            control: control.clone(),
            authority: authority.clone(),
            images: images.clone(),
            address: outside.unwrap_or_else(|| address.to_string()),
            uploads: Arc::default(),
            token: token.clone(),
        };
        let agents = Agents { control: control.clone(), authority: authority.clone(), images };
        let Place { region, zone } = settings.place.clone();
        let place = dispatch::Place { name: region.clone(), region, zones: vec![zone] };
        let tenants = Api::new(control.clone(), place).router();
        let router = operator.router().merge(agents.router()).merge(tenants.clone());
        let router = router.fallback(nothing_here);
        let (http, address_http) = http.unzip();
        Ok(Self {
            address,
            authority,
            control,
            token,
            address_http,
            listener,
            http,
            tenants,
            shown,
            router,
        })
    }

    /// Serves until dropped, or until the control plane cannot go on.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn run(self) -> Result<(), ServeError> {
        let tenants = self.tenants;
        let http = async {
            match self.http {
                Some(listener) => serve_http(listener, tenants).await,
                None => std::future::pending().await,
            }
        };
        let tls = self.shown.config()?;
        tokio::select! {
            ended = self.control.run() => Ok(ended?),
            () = http => Ok(()),
            () = serve_https(self.listener, tls, self.router) => Ok(()),
            () = self.shown.keep() => Ok(()),
            () = warn(&self.control, self.authority.ends()) => Ok(()),
        }
    }
}

/// Tells the operator in the authority's last year, now and then, that it ends.
async fn warn(control: &Control, ends: u64) {
    loop {
        if now() >= ends.saturating_sub(YEAR) {
            let told = control.change(|view, _, context| {
                Ok::<_, Infallible>((tenancy::authority_ends(view, ends, context), ()))
            });
            if let Err(error) = told.await {
                tracing::error!(%error, "an event was not kept");
            }
            tracing::warn!("{}", tenancy::authority_end(ends));
        }
        tokio::time::sleep(DAY).await;
    }
}

/// What the machine is called, if that can be a name in a certificate.
fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    let good = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'.';
    (!name.is_empty() && name.bytes().all(good)).then_some(name)
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let fail = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    Ok((listener, address))
}

async fn nothing_here(uri: axum::http::Uri) -> Refusal {
    Refusal::not_found("path", uri.path())
}

/// The operator's token, made at the first start.
fn token(path: &Path) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) => Err(io::Error::other("it is empty: remove it, and a new token is made")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let token = Kernel.secret(43);
            keep(path, &format!("{token}\n"), 0o600)?;
            Ok(token)
        }
        Err(e) => Err(e),
    }
}
