//! Percent encoding as both signatures want it, and the decoding of queries and forms.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use std::borrow::Cow;

/// What RFC 3986 calls reserved: all but letters, digits and `-_.~`.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// `text` with everything reserved as `%XX`.
pub fn encode(text: &str) -> Cow<'_, str> {
    utf8_percent_encode(text, RESERVED).into()
}

/// A key or a value of a query or a form; `None` where the bytes are no UTF-8.
pub fn decode(text: &[u8]) -> Option<String> {
    let spaced: Cow<'_, [u8]> = if text.contains(&b'+') {
        text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect::<Vec<_>>().into()
    } else {
        text.into()
    };
    String::from_utf8(percent_decode(&spaced).collect()).ok()
}

/// The canonical form of `pairs`, which must be sorted: `key=value&…`, both encoded.
pub fn canonical<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.extend([&encode(key), "=", &encode(value)]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserved_are_encoded_and_a_tilde_is_not() {
        assert_eq!(encode("a b*c~d/é"), "a%20b%2Ac~d%2F%C3%A9");
    }

    #[test]
    fn what_is_encoded_is_decoded_and_plus_is_a_space() {
        let text = "a b*c~d/é+&=";
        assert_eq!(decode(encode(text).as_bytes()).as_deref(), Some(text));
        assert_eq!(decode(b"a+b%2B").as_deref(), Some("a b+"));
        assert_eq!(decode(b"%ff"), None);
    }
}
