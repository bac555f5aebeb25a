//! How the state of a component travels: to a new process, another host, or a file.
//!
//! A component's state is a *payload*: a kind, a version and bytes. The bytes are a protocol-buffer message whose
//! type is written for this purpose alone, apart from the component's run-time type, with numbered fields that are
//! never reused. The release before and the release after can read it; whoever reads it treats it as untrusted.

/// The most bytes one payload may have: a reader refuses more before it decodes.
pub const PAYLOAD_LIMIT: usize = 16 << 20;

/// The state of one component, ready to travel.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    /// What the bytes describe, for example `virtio-pci`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// The version of this kind's layout; a reader that knows only lower ones refuses.
    #[prost(uint32, tag = "2")]
    pub version: u32,
    /// The message itself.
    #[prost(bytes = "vec", tag = "3")]
    pub bytes: Vec<u8>,
}

/// What a component declares about its state.
#[derive(Debug, Clone, PartialEq)]
pub enum Declared {
    /// Nothing to move: built anew from configuration, the component is the same.
    Stateless,
    /// Built anew and given this, the component is the same.
    State(Payload),
    /// It cannot move now; the reason is shown to the operator before the guest is touched.
    NotMovable(String),
}

/// Every component with a life of its own declares its state. There is no default: forgetting does not compile.
pub trait Movable {
    /// Declares the state. Called while the component is stopped, so that nothing changes under the caller.
    fn declare(&self) -> Declared;
}

impl Payload {
    /// Wraps `message` as a payload of this kind and version.
    pub fn new(kind: &str, version: u32, message: &impl prost::Message) -> Self {
        Self { kind: kind.to_owned(), version, bytes: message.encode_to_vec() }
    }

    /// Reads the message back.
    ///
    /// # Errors
    /// A payload of another kind, of a version above `newest`, too large, or with bytes that do not decode.
    pub fn read<M: prost::Message + Default>(
        &self,
        kind: &str,
        newest: u32,
    ) -> Result<M, PayloadError> {
        if self.kind != kind {
            return Err(PayloadError::Kind { wanted: kind.to_owned(), got: self.kind.clone() });
        }
        if self.version > newest {
            return Err(PayloadError::Version {
                kind: self.kind.clone(),
                newest,
                got: self.version,
            });
        }
        if self.bytes.len() > PAYLOAD_LIMIT {
            return Err(PayloadError::TooLarge {
                kind: self.kind.clone(),
                bytes: self.bytes.len(),
            });
        }
        M::decode(self.bytes.as_slice())
            .map_err(|source| PayloadError::Decode { kind: self.kind.clone(), source })
    }
}

/// Why a payload could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The payload belongs to another component.
    #[error("expected the state of {wanted}, got that of {got}")]
    Kind {
        /// The kind the reader serves.
        wanted: String,
        /// The kind it was given.
        got: String,
    },
    /// The payload was written by a release too new.
    #[error(
        "the state of {kind} has version {got}, this release reads up to {newest}: use a newer release"
    )]
    Version {
        /// The component.
        kind: String,
        /// The newest version the reader knows.
        newest: u32,
        /// The version it was given.
        got: u32,
    },
    /// The payload is larger than any honest one.
    #[error(
        "the state of {kind} has {bytes} bytes, more than the {PAYLOAD_LIMIT} a payload may have"
    )]
    TooLarge {
        /// The component.
        kind: String,
        /// Its size in bytes.
        bytes: usize,
    },
    /// The bytes are not such a message.
    #[error("the state of {kind} does not decode")]
    Decode {
        /// The component.
        kind: String,
        /// What the decoder found.
        source: prost::DecodeError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_of_another_kind_or_a_newer_version_is_refused() {
        let inner = Payload { kind: "x".into(), version: 7, bytes: vec![1, 2, 3] };
        let payload = Payload::new("serial", 2, &inner);
        assert_eq!(payload.read::<Payload>("serial", 2).unwrap(), inner);
        assert!(matches!(payload.read::<Payload>("rtc", 2), Err(PayloadError::Kind { .. })));
        assert!(matches!(payload.read::<Payload>("serial", 1), Err(PayloadError::Version { .. })));
        let bad = Payload { bytes: vec![0xff; 9], ..payload };
        assert!(matches!(bad.read::<Payload>("serial", 2), Err(PayloadError::Decode { .. })));
    }
}
