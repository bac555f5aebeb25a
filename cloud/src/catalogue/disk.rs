//! The performance of cloud disks, by category and size: the published formulas, told to whoever asks; no
//! card is given them.

/// The performance level of an ESSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PerformanceLevel {
    /// PL0.
    Pl0,
    /// PL1, what an ESSD is unless it is asked for otherwise.
    Pl1,
    /// PL2.
    Pl2,
    /// PL3.
    Pl3,
}

/// The category of a cloud disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// `cloud`, the oldest.
    Cloud,
    /// `cloud_efficiency`.
    Efficiency,
    /// `cloud_ssd`.
    Ssd,
    /// `cloud_essd` with a performance level.
    Essd(PerformanceLevel),
}

/// What a disk does at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Performance {
    /// Requests per second.
    pub iops: u64,
    /// Throughput in MB/s (a million bytes).
    pub megabytes: u64,
}

impl Category {
    /// The category by the name and, for an ESSD, the performance level of the API.
    pub fn parse(name: &str, level: Option<&str>) -> Option<Self> {
        match (name, level) {
            ("cloud", None) => Some(Self::Cloud),
            ("cloud_efficiency", None) => Some(Self::Efficiency),
            ("cloud_ssd", None) => Some(Self::Ssd),
            ("cloud_essd", None | Some("PL1")) => Some(Self::Essd(PerformanceLevel::Pl1)),
            ("cloud_essd", Some("PL0")) => Some(Self::Essd(PerformanceLevel::Pl0)),
            ("cloud_essd", Some("PL2")) => Some(Self::Essd(PerformanceLevel::Pl2)),
            ("cloud_essd", Some("PL3")) => Some(Self::Essd(PerformanceLevel::Pl3)),
            _ => None,
        }
    }

    /// An ESSD for which no level was asked: PL1, or PL0 where it is too small for that.
    pub fn essd(gib: u64) -> Self {
        let level = if gib < 20 { PerformanceLevel::Pl0 } else { PerformanceLevel::Pl1 };
        Self::Essd(level)
    }

    /// The name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Efficiency => "cloud_efficiency",
            Self::Ssd => "cloud_ssd",
            Self::Essd(_) => "cloud_essd",
        }
    }

    /// The performance level in the API; only an ESSD has one.
    pub fn level(self) -> Option<&'static str> {
        match self {
            Self::Essd(PerformanceLevel::Pl0) => Some("PL0"),
            Self::Essd(PerformanceLevel::Pl1) => Some("PL1"),
            Self::Essd(PerformanceLevel::Pl2) => Some("PL2"),
            Self::Essd(PerformanceLevel::Pl3) => Some("PL3"),
            _ => None,
        }
    }

    /// The sizes in GiB that a disk may have, smallest and largest.
    pub fn sizes(self) -> (u64, u64) {
        match self {
            Self::Cloud => (5, 2_000),
            Self::Efficiency | Self::Ssd => (20, 32_768),
            Self::Essd(PerformanceLevel::Pl0) => (1, 65_536),
            Self::Essd(PerformanceLevel::Pl1) => (20, 65_536),
            Self::Essd(PerformanceLevel::Pl2) => (461, 65_536),
            Self::Essd(PerformanceLevel::Pl3) => (1_261, 65_536),
        }
    }

    /// What a disk of `gib` GiB does at most.
    pub fn performance(self, gib: u64) -> Performance {
        let grow = |base: u64, each: u64, most: u64| {
            gib.saturating_mul(each).saturating_add(base).min(most)
        };
        let (iops, megabytes) = match self {
            // Published as "hundreds", with 30 to 40 MB/s.
            Self::Cloud => (500, 40),
            Self::Efficiency => {
                (grow(1_800, 8, 5_000), (100 + gib.saturating_mul(15) / 100).min(140))
            }
            Self::Ssd => (grow(1_800, 30, 25_000), (120 + gib / 2).min(300)),
            Self::Essd(PerformanceLevel::Pl0) => {
                (grow(1_800, 12, 10_000), (120 + gib / 2).min(180))
            }
            Self::Essd(PerformanceLevel::Pl1) => {
                (grow(1_800, 50, 50_000), (120 + gib / 2).min(350))
            }
            Self::Essd(PerformanceLevel::Pl2) => {
                (grow(1_800, 50, 100_000), (120 + gib / 2).min(750))
            }
            Self::Essd(PerformanceLevel::Pl3) => {
                (grow(1_800, 50, 1_000_000), (120 + gib / 2).min(4_000))
            }
        };
        Performance { iops, megabytes }
    }
}

/// As the model keeps it: the name, and the level of an ESSD behind a slash.
impl std::fmt::Display for Category {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())?;
        self.level().map_or(Ok(()), |level| write!(f, "/{level}"))
    }
}

impl std::str::FromStr for Category {
    type Err = UnknownCategory;

    fn from_str(text: &str) -> Result<Self, UnknownCategory> {
        let (name, level) = text.split_once('/').map_or((text, None), |(n, l)| (n, Some(l)));
        Self::parse(name, level).ok_or_else(|| UnknownCategory(text.to_owned()))
    }
}

/// A text that names no category.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no disk category")]
pub struct UnknownCategory(String);

/// What an instance gets of its disks: what they can do together, within the limit of its type.
pub fn effective_iops(disks: impl IntoIterator<Item = Performance>, limit: Option<u64>) -> u64 {
    let sum = disks.into_iter().fold(0u64, |sum, disk| sum.saturating_add(disk.iops));
    sum.min(limit.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::instance_type;
    use super::*;

    const PL1: Category = Category::Essd(PerformanceLevel::Pl1);
    const PL2: Category = Category::Essd(PerformanceLevel::Pl2);

    #[test]
    fn the_example_of_the_documents_holds() {
        let disk = PL2.performance(1_600);
        assert_eq!(disk.iops, 81_800);
        let limit = instance_type("ecs.g6.8xlarge").and_then(|one| one.disk_iops);
        assert_eq!(effective_iops([disk], limit.map(|limit| limit.base)), 60_000);
        assert_eq!(effective_iops([disk, disk], None), 163_600);
    }

    #[test]
    fn the_formulas_grow_with_the_size_up_to_their_cap() {
        let of = |category: Category, gib| {
            let performance = category.performance(gib);
            (performance.iops, performance.megabytes)
        };
        assert_eq!(of(PL1, 40), (3_800, 140));
        assert_eq!(of(PL1, u64::MAX), (50_000, 350));
        assert_eq!(of(Category::Ssd, 100), (4_800, 170));
        assert_eq!(of(Category::Ssd, 1_000), (25_000, 300));
        assert_eq!(of(Category::Efficiency, 100), (2_600, 115));
        assert_eq!(of(Category::Essd(PerformanceLevel::Pl0), 1_000), (10_000, 180));
        assert_eq!(of(Category::Essd(PerformanceLevel::Pl3), 65_536), (1_000_000, 4_000));
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (name, level) in [
            ("cloud", None),
            ("cloud_ssd", None),
            ("cloud_essd", Some("PL0")),
            ("cloud_essd", Some("PL3")),
        ] {
            let category = Category::parse(name, level).unwrap();
            assert_eq!((category.name(), category.level()), (name, level));
            assert_eq!(category.to_string().parse(), Ok(category));
        }
        assert_eq!(Category::parse("cloud_essd", None), Some(PL1));
        assert_eq!(Category::parse("cloud_ssd", Some("PL1")), None);
        assert_eq!(Category::parse("floppy", None), None);
    }
}
