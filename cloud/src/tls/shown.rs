//! The cloud's own certificate, made anew at every start and before it ends; no listener and no connection notices.

use super::authority::{Authority, AuthorityError, now};
use bixi_api::agent::Validity;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

/// How long the longest sleep is: the clock may be set meanwhile.
const LONGEST_SLEEP: u64 = 3_600_000;

/// What listeners show: a certificate for these names.
#[derive(Debug)]
pub struct Shown {
    authority: Arc<Authority>,
    names: Vec<String>,
    now: RwLock<(Arc<CertifiedKey>, Validity)>,
}

impl Shown {
    /// A fresh certificate for these names, and the authority's.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn new(authority: Arc<Authority>, names: Vec<String>) -> Result<Arc<Self>, AuthorityError> {
        let first = authority.server(&names)?;
        Ok(Arc::new(Self { authority, names, now: RwLock::new(first) }))
    }

    /// How listeners speak.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, AuthorityError> {
        self.authority.config(self.clone())
    }

    /// Makes the next one whenever it is time; never ends.
    pub async fn keep(&self) {
        loop {
            let validity = self.now.read().unwrap_or_else(PoisonError::into_inner).1;
            let (now, due) = (now(), validity.renew_at(0));
            let wait = if now < due {
                due - now
            } else {
                match self.authority.server(&self.names) {
                    Ok(next) => {
                        *self.now.write().unwrap_or_else(PoisonError::into_inner) = next;
                        tracing::info!("the cloud shows a new certificate");
                        // One that is due already is not made again and again: the authority itself ends.
                        1_000
                    }
                    Err(error) => {
                        tracing::error!(%error, "the cloud's certificate cannot be renewed");
                        validity.retry_after(now)
                    }
                }
            };
            tokio::time::sleep(Duration::from_millis(wait.min(LONGEST_SLEEP))).await;
        }
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now.read().unwrap_or_else(PoisonError::into_inner).0.clone())
    }
}
