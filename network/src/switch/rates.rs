//! The limits of a port, one for each direction.
//!
//! What a guest sends over its limit stays in its ring, where it waits and nothing is lost; what comes for it over its
//! limit is dropped and counted. The card's own answers (ARP, DHCP, DNS, metadata) are no traffic of others and are not
//! limited on their way back.

use bixi_api::network::PortLimits;
use bixi_offload::rate::{BadRate, Limiter};
use std::sync::Arc;

/// What a port may carry.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    /// What its guest may send; anything unless told.
    pub transmit: Option<Arc<Limiter>>,
    /// What may come for it; anything unless told.
    pub receive: Option<Arc<Limiter>>,
}

impl Rates {
    /// These limits, with full buckets.
    ///
    /// # Errors
    /// A rate that cannot be.
    pub fn new(limits: &PortLimits) -> Result<Self, BadRate> {
        // Of a few bits a second one byte is left, and of none none.
        let bytes = limits.bits_per_second.map(|bits| bits.div_ceil(8));
        let limiter = || Ok(Limiter::new(limits.packets_per_second, bytes)?.map(Arc::new));
        Ok(Self { transmit: limiter()?, receive: limiter()? })
    }
}
