//! SHA-256 of what passes by.

use aws_lc_rs::digest::{Context, SHA256};
use std::io::{self, Read};

/// A digest under way.
pub struct Sha256(Context);

impl std::fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sha256")
    }
}

impl Sha256 {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest, in hexadecimal.
    pub fn finish(self) -> String {
        self.0.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The digest of all that `from` has, and how many bytes that is; each piece is given to `to` on its way.
pub fn copy(
    mut from: impl Read,
    mut to: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<(String, u64)> {
    let mut digest = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok((digest.finish(), length)),
            Ok(n) => {
                digest.update(&piece[..n]);
                to(&piece[..n])?;
                length += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
