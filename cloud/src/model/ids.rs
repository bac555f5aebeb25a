//! Names of things, as ECS writes them: a prefix, `-` and 20 lower-case letters or digits.
//!
//! The 20 characters of a disk's id are its virtio serial. Randomness comes from outside, so that a simulation is
//! repeatable.

/// Characters behind an id's prefix.
pub const LENGTH: usize = 20;

const LOWER: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const MIXED: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Where randomness comes from.
pub trait Source {
    /// Fills `bytes` with randomness.
    fn fill(&mut self, bytes: &mut [u8]);

    /// `length` characters of `alphabet`, each as likely as any other.
    fn characters(&mut self, alphabet: &[u8], length: usize) -> String {
        let fair = 256 - 256 % alphabet.len();
        let mut text = String::with_capacity(length);
        while text.len() < length {
            let mut bytes = [0; 32];
            self.fill(&mut bytes);
            let good = bytes.iter().map(|byte| usize::from(*byte)).filter(|byte| *byte < fair);
            let good = good.map(|byte| char::from(alphabet[byte % alphabet.len()]));
            text.extend(good.take(length - text.len()));
        }
        text
    }

    /// A new id with this prefix, for example `i`.
    fn id(&mut self, prefix: &str) -> String {
        format!("{prefix}-{}", self.characters(LOWER, LENGTH))
    }

    /// A new secret of `length` letters and digits.
    fn secret(&mut self, length: usize) -> String {
        self.characters(MIXED, length)
    }

    /// A locally administered hardware address.
    fn mac(&mut self) -> String {
        let mut bytes = [0; 5];
        self.fill(&mut bytes);
        let [a, b, c, d, e] = bytes;
        format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
    }
}

/// The kernel's randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

impl Source for Kernel {
    fn fill(&mut self, bytes: &mut [u8]) {
        // The kernel's source fails only where there is none, and then nothing here may be named.
        getrandom::fill(bytes).unwrap_or_else(|_| std::process::abort());
    }
}

/// Whether `text` is an id with this prefix.
pub fn is(prefix: &str, text: &str) -> bool {
    let rest = text.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
    rest.is_some_and(|rest| rest.len() == LENGTH && rest.bytes().all(|c| LOWER.contains(&c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_what_ecs_and_the_disks_serial_want() {
        let mut kernel = Kernel;
        let (one, two) = (kernel.id("d"), kernel.id("d"));
        assert_ne!(one, two);
        assert!(is("d", &one) && !is("i", &one) && !is("d", &one[..21]));
        assert!(!is("d", "d-0123456789ABCDEFGHIJ") && !is("d", "d-0123456789abcdefghi/"));
        assert_eq!(kernel.secret(30).len(), 30);
        assert_eq!(kernel.mac().len(), 17);
    }
}
