//! Which address each device of a configuration gets on board `i440fx-1`.

use super::i440fx_1::{BRIDGES, RNG, disk_addresses, nic_addresses};
use super::{PathError, PciPath};
use bixi_api::compute::VmConfig;
use std::collections::BTreeMap;

/// The addresses of a configuration's devices, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPlan {
    /// One per disk.
    pub disks: Vec<PciPath>,
    /// One per NIC.
    pub nics: Vec<PciPath>,
    /// The entropy device's, if there is one.
    pub rng: Option<PciPath>,
}

/// Why the devices of a configuration have no places.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// An address is no address.
    #[error("{owner}: {source}")]
    Address {
        /// Whose address it is.
        owner: String,
        /// What is wrong with it.
        source: PathError,
    },
    /// Two devices want one address.
    #[error("{first} and {second} both have address {path}: give one of them another, or none")]
    Clash {
        /// The address.
        path: PciPath,
        /// Who has it.
        first: String,
        /// Who wants it too.
        second: String,
    },
    /// The board has no place for devices there.
    #[error(
        "{owner} cannot be at address {path}: devices go to \"2/1\"…\"2/31\", \"3/1\"…\"3/31\", \"4/1\"…\"4/31\" and \"5\"…\"31\""
    )]
    Unusable {
        /// The address.
        path: PciPath,
        /// Who wants it.
        owner: String,
    },
    /// Every address of its kind is taken.
    #[error(
        "no address is left for {owner}: the board takes 62 disks and NICs unless they have addresses of their own"
    )]
    Full {
        /// Who got none.
        owner: String,
    },
}

/// The places taken so far, and by whom.
#[derive(Debug, Default)]
struct Places(BTreeMap<PciPath, String>);

impl Places {
    fn take(&mut self, path: PciPath, owner: String) -> Result<PciPath, PlanError> {
        let usable = match path.bridge() {
            None => path.slot() > BRIDGES[BRIDGES.len() - 1],
            Some(bridge) => BRIDGES.contains(&bridge) && path.slot() > 0,
        };
        if !usable {
            return Err(PlanError::Unusable { path, owner });
        }
        match self.0.get(&path) {
            Some(first) => Err(PlanError::Clash { path, first: first.clone(), second: owner }),
            None => {
                self.0.insert(path, owner);
                Ok(path)
            }
        }
    }

    fn take_first(
        &mut self,
        mut free: impl Iterator<Item = PciPath>,
        owner: String,
    ) -> Result<PciPath, PlanError> {
        let path = free.find(|path| !self.0.contains_key(path));
        let path = path.ok_or_else(|| PlanError::Full { owner: owner.clone() })?;
        self.take(path, owner)
    }
}

/// Gives every device of `config` its address: first those that have one of their own, then the others in order.
///
/// # Errors
/// An address is malformed, taken twice or unusable, or none is left.
pub fn plan(config: &VmConfig) -> Result<AddressPlan, PlanError> {
    let mut places = Places::default();
    let disks = config.disks.iter().map(|disk| (format!("disk {}", disk.id), &disk.address));
    let nics = config.nics.iter().map(|nic| (format!("NIC {}", nic.id), &nic.address));
    let devices: Vec<_> = disks.chain(nics).collect();
    let mut paths = Vec::with_capacity(devices.len());
    for (owner, address) in &devices {
        let path = match address {
            None => None,
            Some(text) => {
                let path = text
                    .parse()
                    .map_err(|source| PlanError::Address { owner: owner.clone(), source })?;
                Some(places.take(path, owner.clone())?)
            }
        };
        paths.push(path);
    }
    let rng = match config.rng {
        true => Some(places.take(RNG, "the entropy device".to_owned())?),
        false => None,
    };
    let mut planned = Vec::with_capacity(devices.len());
    for (index, ((owner, _), path)) in devices.into_iter().zip(paths).enumerate() {
        planned.push(match path {
            Some(path) => path,
            None if index < config.disks.len() => places.take_first(disk_addresses(), owner)?,
            None => places.take_first(nic_addresses(), owner)?,
        });
    }
    let nics = planned.split_off(config.disks.len());
    Ok(AddressPlan { disks: planned, nics, rng })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(disks: &[&str], nics: &[&str]) -> VmConfig {
        let address = |text: &str| match text {
            "" => String::new(),
            text => format!(r#","address":"{text}""#),
        };
        let item = |kind: &str, index: usize, at: &str| {
            let socket = r#""socket":{"path":"/s"}"#;
            match kind {
                "d" => format!(r#"{{"id":"d{index}",{socket}{}}}"#, address(at)),
                _ => format!(
                    r#"{{"id":"n{index}","mac":"02:00:00:00:00:01",{socket}{}}}"#,
                    address(at)
                ),
            }
        };
        let list = |kind: &str, all: &[&str]| {
            let all: Vec<_> = all.iter().enumerate().map(|(i, at)| item(kind, i, at)).collect();
            all.join(",")
        };
        let text = format!(
            r#"{{"id":"i","memory":{{"size":1048576}},"boot":{{"kernel":{{"path":"/k"}}}},"disks":[{}],"nics":[{}]}}"#,
            list("d", disks),
            list("n", nics)
        );
        serde_json::from_str(&text).unwrap()
    }

    fn texts(paths: &[PciPath]) -> Vec<String> {
        paths.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn devices_get_the_first_free_address_of_their_kind() {
        let plan = plan(&config(&["", "2/1", "", "9"], &["", "4/1"])).unwrap();
        assert_eq!(texts(&plan.disks), ["2/2", "2/1", "2/3", "9"]);
        assert_eq!(texts(&plan.nics), ["4/2", "4/1"]);
        assert_eq!(plan.rng, Some(RNG));
    }

    #[test]
    fn what_cannot_be_is_refused_and_says_why() {
        for (disks, nics, why) in [
            (vec!["2/1"], vec!["2/1"], "disk d0 and NIC n0 both have address 2/1"),
            (vec!["5"], vec![], "disk d0 and the entropy device both have address 5"),
            (vec!["3"], vec![], "disk d0 cannot be at address 3"),
            (vec!["2/0"], vec![], "cannot be at address 2/0"),
            (vec!["5/1"], vec![], "cannot be at address 5/1"),
            (vec!["0"], vec![], "cannot be at address 0"),
            (vec!["x"], vec![], "disk d0: `x` is no device address"),
            (vec![""; 63], vec![], "no address is left for disk d62"),
        ] {
            let error = plan(&config(&disks, &nics)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn disks_and_nics_of_the_largest_instance_fit() {
        let plan = plan(&config(&[""; 18], &[""; 32])).unwrap();
        assert_eq!(texts(&plan.nics)[30..], ["4/31", "3/31"]);
    }
}
