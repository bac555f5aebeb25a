//! The parsers of bytes that others wrote, as functions of bytes: for fuzzers, and for the test below.

use crate::bundle::Reader;
use crate::key::{PrivateKey, PublicKey, Trusted};
use crate::manifest::{Manifest, Signed};
use std::sync::OnceLock;

/// A bundle, a key's line and a manifest behind the signature, which a fuzzer cannot make.
pub fn bundle(data: &[u8]) {
    static KEY: OnceLock<Option<PrivateKey>> = OnceLock::new();
    let Some(key) = KEY.get_or_init(|| PrivateKey::generate("fuzz").ok()) else { return };
    let mut trusted = Trusted::default();
    trusted.extend([key.public().clone()]);
    let read = Reader::open(data, &trusted).and_then(Reader::finish);
    assert!(read.is_err(), "nobody has signed this");
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(public) = text.parse::<PublicKey>()
    {
        let again = public.to_string().parse::<PublicKey>();
        assert!(again.is_ok_and(|again| again == public));
    }
    let _ = Signed::check(data.to_vec(), data.to_vec(), &trusted);
    if let Ok(manifest) = Manifest::parse(data) {
        for file in &manifest.files {
            assert!(!file.path.starts_with('/') && !file.path.contains(".."), "{}", file.path);
        }
        // What follows a manifest that was signed is read as far as it goes.
        if let Ok(signed) = Signed::make(manifest, key) {
            crate::bundle::after(signed, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::tests::bundle as make;

    #[test]
    fn no_input_breaks_the_reader() {
        let made = make("1.0.0", "x", None);
        let archive = std::fs::read(&made.path).unwrap();
        let trusted = crate::bundle::tests::trust(&made.key);
        let signed = Reader::open(archive.as_slice(), &trusted).unwrap().signed().clone();
        let line = made.key.public().to_string().into_bytes();
        let seeds = [archive, signed.bytes, signed.signature, line];
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for round in 0..8_000 {
            let mut data = seeds[round % seeds.len()].clone();
            for _ in 0..round % 5 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = usize::try_from(random >> 8).unwrap_or(0) % data.len();
                data[at] = (random & 0xff) as u8;
            }
            bundle(&data);
        }
    }
}
