//! What is done with a frame.
//!
//! Invariant: an action fits one word, so that a flow's record holds it; a word that is no action reads as none.

use super::view::PortIndex;

/// What is done with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Give it to a port of this process.
    Local(PortIndex),
    /// Encapsulate it for this end point of the segment.
    Tunnel(u32),
    /// The card answers itself, by looking at the whole frame.
    Answer(Answer),
    /// Drop it and count why.
    Drop(Reason),
}

/// Which of the card's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// ARP.
    Arp,
    /// DHCP.
    Dhcp,
    /// DNS.
    Dns,
    /// The metadata server.
    Metadata,
}

/// Why a frame is dropped; each is a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Its source is not the port's.
    Spoofed = 0,
    /// Nobody owns its destination.
    UnknownDestination = 1,
    /// It contradicts itself.
    Malformed = 2,
    /// It is for many: nothing is flooded.
    Multicast = 3,
    /// It is IPv6, which this release does not carry.
    Ipv6 = 4,
    /// It is neither IPv4, ARP nor IPv6.
    OtherProtocol = 5,
    /// It is larger than the segment's MTU.
    TooBig = 6,
    /// It goes to another server, and the underlay could not take it.
    Underlay = 7,
    /// It asks the card's DNS or metadata server, too often.
    Limited = 8,
}

impl Reason {
    /// How many reasons there are.
    pub const COUNT: usize = 9;

    /// All of them, in order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Spoofed,
        Self::UnknownDestination,
        Self::Malformed,
        Self::Multicast,
        Self::Ipv6,
        Self::OtherProtocol,
        Self::TooBig,
        Self::Underlay,
        Self::Limited,
    ];
}

const LOCAL: u64 = 1;
const TUNNEL: u64 = 2;

impl Action {
    /// The action as a word, if a flow may remember it. Answers look at the whole frame each time; drops are decided
    /// anew, so that a scan fills no table.
    pub fn to_word(self) -> Option<u64> {
        match self {
            Self::Local(PortIndex(port)) => Some(LOCAL | u64::from(port) << 32),
            Self::Tunnel(endpoint) => Some(TUNNEL | u64::from(endpoint) << 32),
            Self::Answer(_) | Self::Drop(_) => None,
        }
    }

    /// The action of a word.
    #[inline]
    pub fn from_word(word: u64) -> Option<Self> {
        let value = (word >> 32) as u32;
        match word & 0xffff_ffff {
            LOCAL => Some(Self::Local(PortIndex(u16::try_from(value).ok()?))),
            TUNNEL => Some(Self::Tunnel(value)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_the_action_it_was_made_of_or_none() {
        for action in [
            Action::Local(PortIndex(0)),
            Action::Local(PortIndex(u16::MAX)),
            Action::Tunnel(0),
            Action::Tunnel(u32::MAX),
        ] {
            assert_eq!(Action::from_word(action.to_word().unwrap()), Some(action));
        }
        for word in [0, 3, 1 | 1 << 48, u64::MAX, 1 << 32] {
            assert_eq!(Action::from_word(word), None, "{word:#x}");
        }
        assert_eq!(Action::Drop(Reason::Spoofed).to_word(), None);
        assert_eq!(Reason::ALL.map(|r| r as usize), std::array::from_fn(|i| i));
    }
}
