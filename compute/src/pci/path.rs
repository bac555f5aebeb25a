//! Where a function sits: a path from the root, never a bus number.
//!
//! Bus numbers are the guest's to give and to change; what an operator writes into a configuration and what state
//! carries to another host must not depend on them. A path is `"slot"` on the root bus or `"bridge/slot"` behind the
//! bridge in root slot `bridge`.

use std::fmt;
use std::str::FromStr;

/// Slots of one bus.
pub const SLOTS: u8 = 32;
/// Functions of one slot.
pub const FUNCTIONS: u8 = 8;

/// The address of one PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciPath {
    bridge: Option<u8>,
    slot: u8,
    function: u8,
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no device address: write \"slot\" or \"bridge/slot\" with slots from 0 to 31, for example \"2/1\""
)]
pub struct PathError {
    text: String,
}

impl PciPath {
    /// Function 0 of `slot` on the root bus; `None` if there is no such slot.
    #[must_use]
    pub const fn root(slot: u8) -> Option<Self> {
        Self::root_function(slot, 0)
    }

    /// A function of a multi-function slot on the root bus.
    #[must_use]
    pub const fn root_function(slot: u8, function: u8) -> Option<Self> {
        if slot < SLOTS && function < FUNCTIONS {
            Some(Self { bridge: None, slot, function })
        } else {
            None
        }
    }

    /// Function 0 of `slot` behind the bridge in root slot `bridge`.
    #[must_use]
    pub const fn behind(bridge: u8, slot: u8) -> Option<Self> {
        if bridge < SLOTS && slot < SLOTS {
            Some(Self { bridge: Some(bridge), slot, function: 0 })
        } else {
            None
        }
    }

    /// The root slot of the bridge in front of the function, if there is one.
    #[must_use]
    pub const fn bridge(self) -> Option<u8> {
        self.bridge
    }

    /// The slot on its own bus.
    #[must_use]
    pub const fn slot(self) -> u8 {
        self.slot
    }

    /// The function number in its slot.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.function
    }

    /// Slot and function as configuration cycles carry them: slot in bits 7..3, function in bits 2..0.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.slot << 3 | self.function
    }
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(bridge) = self.bridge {
            write!(f, "{bridge}/")?;
        }
        write!(f, "{}", self.slot)?;
        if self.function != 0 {
            write!(f, ".{}", self.function)?;
        }
        Ok(())
    }
}

impl FromStr for PciPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        // `u8::from_str` alone would take "+1" and "007", and one address would have several spellings.
        let slot = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit())
                && (digits.len() == 1 || !digits.starts_with('0'));
            digits.parse::<u8>().ok().filter(|_| plain)
        };
        let path = match text.split_once('/') {
            Some((bridge, rest)) => {
                slot(bridge).zip(slot(rest)).and_then(|(bridge, slot)| Self::behind(bridge, slot))
            }
            None => slot(text).and_then(Self::root),
        };
        path.ok_or_else(|| PathError { text: text.chars().take(40).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_was_written() {
        for text in ["0", "5", "31", "2/1", "4/31"] {
            assert_eq!(text.parse::<PciPath>().unwrap().to_string(), text);
        }
        assert_eq!(PciPath::root_function(1, 3).unwrap().to_string(), "1.3");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "32", "2/32", "32/1", "2/", "/1", "2/1/1", "+1", "01", "1.3", "-1", " 1"] {
            let error = text.parse::<PciPath>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
