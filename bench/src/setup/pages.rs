//! Huge pages of 2 MiB: reserved for a benchmark, given back after it.

use crate::BenchError;
use std::fs;

const RESERVED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// Huge pages that are there while this lives.
#[derive(Debug)]
pub struct HugePages {
    before: u64,
}

impl HugePages {
    /// Sees to it that `wanted` pages are free.
    ///
    /// # Errors
    /// Memory is too fragmented or too small, or this is not root.
    pub fn reserve(wanted: u64) -> Result<Self, BenchError> {
        let (before, free) = (read(RESERVED)?, read(FREE)?);
        // Made before the change, so that a failure on the way gives back what was got.
        let this = Self { before };
        if free < wanted {
            let more = before + wanted - free;
            fs::write(RESERVED, more.to_string())
                .map_err(|_| BenchError::Root("reserving huge pages"))?;
        }
        let got = read(FREE)?;
        if got < wanted { Err(BenchError::HugePages { wanted, got }) } else { Ok(this) }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(RESERVED, self.before.to_string());
    }
}

fn read(path: &str) -> Result<u64, BenchError> {
    let text =
        fs::read_to_string(path).map_err(BenchError::system("read the number of huge pages"))?;
    Ok(text.trim().parse().unwrap_or(0))
}
