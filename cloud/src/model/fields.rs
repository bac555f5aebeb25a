//! How fields travel between a record's run-time type and the message that is stored, and the macros that make both.

use std::net::{Ipv4Addr, SocketAddr};

/// A stored field has no meaning to this release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is missing or unknown: use a newer release")]
pub struct FieldError {
    /// Which field or type.
    pub what: &'static str,
}

/// A run-time value that is stored as `W`.
pub trait Field<W>: Sized {
    /// The value as it is stored.
    fn write(&self) -> W;

    /// Reads what was stored.
    ///
    /// # Errors
    /// It has no meaning here.
    fn read(wire: W) -> Result<Self, FieldError>;
}

macro_rules! plain {
    ($($type:ty),*) => {$(
        impl Field<$type> for $type {
            fn write(&self) -> $type {
                self.clone()
            }

            fn read(wire: $type) -> Result<Self, FieldError> {
                Ok(wire)
            }
        }
    )*};
}

plain!(String, u64, u32, bool, Vec<String>, Option<String>, Option<u64>);

impl Field<u32> for Ipv4Addr {
    fn write(&self) -> u32 {
        (*self).into()
    }

    fn read(wire: u32) -> Result<Self, FieldError> {
        Ok(wire.into())
    }
}

impl Field<Option<String>> for Option<SocketAddr> {
    fn write(&self) -> Option<String> {
        self.map(|address| address.to_string())
    }

    fn read(wire: Option<String>) -> Result<Self, FieldError> {
        let parse = |text: String| text.parse().map_err(|_| FieldError { what: "an address" });
        wire.map(parse).transpose()
    }
}

/// Makes an enum whose variants are stored as numbers, from 1.
macro_rules! numbered {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$vdoc:meta])* $number:literal $variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)*
        }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
        }

        impl $crate::model::Field<u32> for $name {
            fn write(&self) -> u32 {
                match self {
                    $(Self::$variant => $number,)*
                }
            }

            fn read(wire: u32) -> Result<Self, $crate::model::FieldError> {
                match wire {
                    $($number => Ok(Self::$variant),)*
                    _ => Err($crate::model::FieldError { what: stringify!($name) }),
                }
            }
        }
    };
}

/// Makes a record's run-time type and its message: `NUMBER name: run-time type as stored type [prost's words];`.
macro_rules! record {
    (
        $(#[$doc:meta])*
        pub struct $name:ident / $wire:ident {
            $($(#[$fdoc:meta])* $tag:literal $field:ident: $type:ty as $stored:ty [$($attr:tt)*];)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $type,)*
        }

        #[doc = concat!("[`", stringify!($name), "`] as it is stored.")]
        #[derive(Clone, PartialEq, prost::Message)]
        pub struct $wire {
            $($(#[$fdoc])* #[prost($($attr)*, tag = $tag)] pub $field: $stored,)*
        }

        impl $name {
            /// The record as it is stored.
            pub fn to_state(&self) -> $wire {
                $wire { $($field: $crate::model::Field::write(&self.$field),)* }
            }

            /// Reads what was stored.
            ///
            /// # Errors
            /// A field has no meaning to this release.
            pub fn from_state(state: $wire) -> Result<Self, $crate::model::FieldError> {
                Ok(Self { $($field: $crate::model::Field::read(state.$field)?,)* })
            }
        }

        impl $crate::model::Field<Option<$wire>> for $name {
            fn write(&self) -> Option<$wire> {
                Some(self.to_state())
            }

            fn read(wire: Option<$wire>) -> Result<Self, $crate::model::FieldError> {
                Self::from_state(wire.ok_or($crate::model::FieldError { what: stringify!($name) })?)
            }
        }

        impl $crate::model::Field<Option<$wire>> for Option<$name> {
            fn write(&self) -> Option<$wire> {
                self.as_ref().map($name::to_state)
            }

            fn read(wire: Option<$wire>) -> Result<Self, $crate::model::FieldError> {
                wire.map($name::from_state).transpose()
            }
        }

        impl $crate::model::Field<Vec<$wire>> for Vec<$name> {
            fn write(&self) -> Vec<$wire> {
                self.iter().map($name::to_state).collect()
            }

            fn read(wire: Vec<$wire>) -> Result<Self, $crate::model::FieldError> {
                wire.into_iter().map($name::from_state).collect()
            }
        }
    };
}

pub(super) use {numbered, record};
