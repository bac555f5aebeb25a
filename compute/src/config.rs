//! The configuration file: read, checked, its gaps filled.
//!
//! Everything that can be known without touching the host is checked here, before anything is built, so that `--check`
//! says the same as a start would. Each refusal names the field, its value and what to do.

use crate::boot::files::duplicate;
use crate::boot::layout::CMDLINE_SIZE;
use crate::inherited;
use crate::memory::{HIGH_START, LOW_END};
use crate::pci::{AddressPlan, PlanError, i440fx_1, plan};
use bixi_api::compute::{ConsoleConfig, DiskConfig, NicConfig, PageSize, VmConfig};
use bixi_api::file::FileSource;
use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// The most vCPUs of a VM.
pub const MAX_VCPUS: u8 = 64;
/// The most queues of a disk.
const MAX_QUEUES: u16 = 64;
/// The most queue pairs of a network interface.
const MAX_QUEUE_PAIRS: u16 = 32;
const MAX_QUEUE_SIZE: u16 = 1024;
/// The smallest MTU that IPv4 allows.
const MIN_MTU: u16 = 68;
const MAX_ID: usize = 64;
/// A configuration is not longer than this.
const FILE_LIMIT: u64 = 1 << 20;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there.
    #[error("{} does not exist: give the configuration's path", .0.display())]
    Missing(PathBuf),
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is no JSON, lacks a field or has one too many.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A field's value cannot be.
    #[error("{field} is {value}: {demand}")]
    Field {
        /// The field, as a path into the file.
        field: String,
        /// Its value.
        value: String,
        /// What it must be.
        demand: String,
    },
    /// Two things that must differ are the same.
    #[error("{first} and {second} are both {value}: each must be used once")]
    Twice {
        /// Who has it.
        first: String,
        /// Who wants it too.
        second: String,
        /// What it is.
        value: String,
    },
    /// The devices have no places.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// A configuration that can be built.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The configuration, with the devices' addresses filled in.
    pub config: VmConfig,
    /// Where devices go.
    pub plan: AddressPlan,
}

/// Reads and checks the configuration at `source`.
///
/// # Errors
/// See [`ConfigError`].
pub fn read(source: &FileSource) -> Result<Checked, ConfigError> {
    let named = PathBuf::from(source.to_string());
    let path = named.as_path();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ConfigError::Missing(path.to_owned()),
        _ => ConfigError::Read { path: path.to_owned(), source },
    };
    let file = match source {
        FileSource::Path(path) => std::fs::File::open(path),
        FileSource::Fd(fd) => duplicate(*fd),
    };
    let file = file.map_err(failed)?;
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, FILE_LIMIT), &mut text).map_err(failed)?;
    parse(&text, path).and_then(check)
}

/// Reads a configuration from JSON; `path` is for errors.
///
/// # Errors
/// It is no JSON, lacks a field or has one too many.
pub fn parse(text: &[u8], path: &Path) -> Result<VmConfig, ConfigError> {
    serde_json::from_slice(text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
}

/// Checks `config` and fills its gaps.
///
/// # Errors
/// See [`ConfigError`].
pub fn check(mut config: VmConfig) -> Result<Checked, ConfigError> {
    check_id("id", &config.id)?;
    let boards = format!("this release has \"{}\"", i440fx_1::NAME);
    demand(config.board == i440fx_1::NAME, "board", &config.board, boards)?;
    let vcpus = format!("give 1 to {MAX_VCPUS}");
    demand((1..=MAX_VCPUS).contains(&config.cpus.count), "cpus.count", config.cpus.count, vcpus)?;
    check_memory(&config)?;
    check_command_line(&config.boot.cmdline)?;
    let mut once = Once::default();
    for (index, disk) in config.disks.iter().enumerate() {
        check_disk(index, disk, &mut once)?;
    }
    for (index, nic) in config.nics.iter().enumerate() {
        check_nic(index, nic, &mut once)?;
    }
    if let ConsoleConfig::File(source) | ConsoleConfig::Socket(source) = &config.console {
        once.file("console".to_owned(), source)?;
    }
    if let Some(source) = &config.control {
        once.file("control".to_owned(), source)?;
    }
    for (field, source) in [("host.kvm", &config.host.kvm), ("host.status", &config.host.status)] {
        once.file(field.to_owned(), source)?;
    }
    let plan = plan(&config)?;
    for (disk, path) in config.disks.iter_mut().zip(&plan.disks) {
        disk.address = Some(path.to_string());
    }
    for (nic, path) in config.nics.iter_mut().zip(&plan.nics) {
        nic.address = Some(path.to_string());
    }
    Ok(Checked { config, plan })
}

/// Things that may be used once: ids, hardware addresses, files.
#[derive(Debug, Default)]
struct Once(HashMap<(&'static str, String), String>);

impl Once {
    fn use_up(&mut self, kind: &'static str, value: String, by: String) -> Result<(), ConfigError> {
        match self.0.insert((kind, value.clone()), by.clone()) {
            None => Ok(()),
            Some(first) => Err(ConfigError::Twice { first, second: by, value }),
        }
    }

    fn file(&mut self, by: String, source: &FileSource) -> Result<(), ConfigError> {
        if let FileSource::Fd(fd) = source {
            let inherited = *fd >= 0 && inherited::is_one(*fd);
            let what = "give the number of a descriptor that this process is started with";
            demand(inherited, &by, fd, what)?;
        }
        self.use_up("file", source.to_string(), by)
    }
}

fn demand(
    holds: bool,
    field: &str,
    value: impl Display,
    demand: impl Into<String>,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    let (field, value, demand) = (field.to_owned(), value.to_string(), demand.into());
    Err(ConfigError::Field { field, value, demand })
}

fn check_id(field: &str, id: &str) -> Result<(), ConfigError> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let holds = (1..=MAX_ID).contains(&id.len()) && id.chars().all(good);
    let shown = format!("\"{}\"", id.escape_debug());
    demand(holds, field, shown, format!("give 1 to {MAX_ID} letters, digits, \"-\" or \"_\""))
}

fn check_memory(config: &VmConfig) -> Result<(), ConfigError> {
    let size = config.memory.size;
    let page: u64 = match config.memory.pages {
        PageSize::Small => 4 << 10,
        PageSize::Huge2M => 2 << 20,
        PageSize::Huge1G => 1 << 30,
    };
    let holds = size > 0 && size.is_multiple_of(page);
    demand(holds, "memory.size", size, format!("give a multiple of {page} bytes"))?;
    let most = LOW_END + (i440fx_1::MEMORY64_START - HIGH_START);
    demand(size <= most, "memory.size", size, format!("this board has room for {most} bytes"))
}

fn check_command_line(line: &str) -> Result<(), ConfigError> {
    let field = "boot.cmdline";
    let printable = |c: char| !c.is_control();
    let shown = || format!("\"{}\"", line.escape_debug());
    demand(line.chars().all(printable), field, shown(), "control characters do not belong there")?;
    let most = CMDLINE_SIZE - 1;
    let length = format!("{} bytes long", line.len());
    demand(line.len() <= most, field, length, format!("give at most {most} bytes"))
}

fn check_queue_size(prefix: &str, size: u16) -> Result<(), ConfigError> {
    let holds = size.is_power_of_two() && (2..=MAX_QUEUE_SIZE).contains(&size);
    let wanted = format!("give a power of two from 2 to {MAX_QUEUE_SIZE}");
    demand(holds, &format!("{prefix}.queue-size"), size, wanted)
}

fn check_disk(index: usize, disk: &DiskConfig, once: &mut Once) -> Result<(), ConfigError> {
    let prefix = format!("disks[{index}]");
    check_id(&format!("{prefix}.id"), &disk.id)?;
    once.use_up("device", disk.id.clone(), format!("{prefix}.id"))?;
    once.file(format!("{prefix}.socket"), &disk.socket)?;
    if let Some(queues) = disk.queues {
        let wanted = format!("give 1 to {MAX_QUEUES}");
        demand((1..=MAX_QUEUES).contains(&queues), &format!("{prefix}.queues"), queues, wanted)?;
    }
    check_queue_size(&prefix, disk.queue_size)
}

fn check_nic(index: usize, nic: &NicConfig, once: &mut Once) -> Result<(), ConfigError> {
    let prefix = format!("nics[{index}]");
    check_id(&format!("{prefix}.id"), &nic.id)?;
    once.use_up("device", nic.id.clone(), format!("{prefix}.id"))?;
    once.file(format!("{prefix}.socket"), &nic.socket)?;
    let field = format!("{prefix}.mac");
    let mac = parse_mac(&nic.mac).filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]);
    let wanted = "give a unicast hardware address such as 02:00:00:00:00:01";
    demand(mac.is_some(), &field, format!("\"{}\"", nic.mac.escape_debug()), wanted)?;
    once.use_up("mac", nic.mac.to_ascii_lowercase(), field)?;
    if let Some(pairs) = nic.queue_pairs {
        let (field, wanted) =
            (format!("{prefix}.queue-pairs"), format!("give 1 to {MAX_QUEUE_PAIRS}"));
        demand((1..=MAX_QUEUE_PAIRS).contains(&pairs), &field, pairs, wanted)?;
    }
    if let Some(mtu) = nic.mtu {
        let wanted = format!("give {MIN_MTU} to 65535");
        demand(mtu >= MIN_MTU, &format!("{prefix}.mtu"), mtu, wanted)?;
    }
    check_queue_size(&prefix, nic.queue_size)
}

/// Six bytes in hexadecimal with colons between them.
#[must_use]
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        if !part.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut value = serde_json::json!({
            "id": "i-1",
            "memory": {"size": 268435456},
            "boot": {"kernel": {"path": "/k"}},
            "disks": [{"id": "d-1", "socket": {"path": "/run/d"}}],
            "nics": [{"id": "e-1", "socket": {"path": "/run/e"}, "mac": "02:00:00:00:00:01"}],
        });
        change(&mut value);
        serde_json::to_vec(&value).unwrap()
    }

    fn try_check(change: impl FnOnce(&mut serde_json::Value)) -> Result<Checked, ConfigError> {
        parse(&text(change), Path::new("vm.json")).and_then(check)
    }

    #[test]
    fn a_good_one_passes_and_gets_its_addresses() {
        let checked = try_check(|_| {}).unwrap();
        assert_eq!(checked.config.disks[0].address.as_deref(), Some("2/1"));
        assert_eq!(checked.config.nics[0].address.as_deref(), Some("4/1"));
        assert_eq!(checked.plan.rng.map(|path| path.to_string()).as_deref(), Some("5"));
        let again = check(checked.config.clone()).unwrap();
        assert_eq!(again.config, checked.config, "what is filled in is good itself");
    }

    #[test]
    fn each_refusal_names_field_value_and_remedy() {
        type Change = fn(&mut serde_json::Value);
        let cases: [(&str, Change); 19] = [
            ("id is \"a b\": give 1 to 64", |v| v["id"] = "a b".into()),
            ("board is q35: this release has \"i440fx-1\"", |v| v["board"] = "q35".into()),
            ("cpus.count is 65: give 1 to 64", |v| v["cpus"]["count"] = 65.into()),
            ("memory.size is 4097: give a multiple of 4096", |v| v["memory"]["size"] = 4097.into()),
            ("memory.size is 0", |v| v["memory"]["size"] = 0.into()),
            ("memory.size is 562949953421312: this board has room for", |v| {
                v["memory"]["size"] = (1_u64 << 49).into();
            }),
            ("boot.cmdline is \"a\\0\": control", |v| v["boot"]["cmdline"] = "a\0".into()),
            ("boot.cmdline is 5000 bytes long: give at most 4095", |v| {
                v["boot"]["cmdline"] = "x".repeat(5000).into();
            }),
            ("disks[0].queues is 65: give 1 to 64", |v| v["disks"][0]["queues"] = 65.into()),
            ("disks[0].queue-size is 3: give a power", |v| v["disks"][0]["queue-size"] = 3.into()),
            ("nics[0].mac is \"01:00:00:00:00:01\": give a unicast", |v| {
                v["nics"][0]["mac"] = "01:00:00:00:00:01".into();
            }),
            ("nics[0].mac is \"+2:00:00:00:00:01\"", |v| {
                v["nics"][0]["mac"] = "+2:00:00:00:00:01".into();
            }),
            ("nics[0].mtu is 67: give 68", |v| v["nics"][0]["mtu"] = 67.into()),
            ("nics[0].queue-pairs is 0: give 1", |v| v["nics"][0]["queue-pairs"] = 0.into()),
            ("disks[0].id and nics[0].id are both d-1", |v| v["nics"][0]["id"] = "d-1".into()),
            ("disks[0].socket and control are both /run/d", |v| {
                v["control"] = serde_json::json!({"path": "/run/d"});
            }),
            ("control is -1: give the number", |v| v["control"] = serde_json::json!({"fd": -1})),
            ("vm.json: unknown field `colour`", |v| v["colour"] = 1.into()),
            ("vm.json: invalid type: string \"x\", expected u64", |v| {
                v["memory"]["size"] = "x".into();
            }),
        ];
        for (expected, change) in cases {
            let error = try_check(change).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\nis not\n{expected}");
        }
    }

    #[test]
    fn clashing_addresses_are_refused() {
        let error = try_check(|v| {
            v["disks"][0]["address"] = "4/1".into();
            v["nics"][0]["address"] = "4/1".into();
        });
        assert!(matches!(error, Err(ConfigError::Plan(PlanError::Clash { .. }))), "{error:?}");
    }
}
