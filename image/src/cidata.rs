//! The NoCloud disk: what cloud-init, and a [tiny](crate::tiny) guest, reads of its instance when nobody else is asked.
//!
//! A file system with the label `CIDATA` and the files `meta-data`, `user-data`, `network-config` and, if there is one,
//! `vendor-data`. It needs no network and is understood by every image that has any cloud-init at all.
//!
//! Invariants: every text that comes from a user is written as a quoted YAML scalar, so that none can become structure;
//! the same seed gives the same bytes.

mod fat;

use crate::error::{Error, Result};
use std::fmt::Write;
use std::net::Ipv4Addr;

pub use fat::DISK_BYTES;

/// What an instance is told of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seed {
    /// Its id: cloud-init does its first-boot work again when it changes.
    pub instance_id: String,
    /// Its host name.
    pub hostname: String,
    /// Keys that may log in, as in `authorized_keys`.
    pub public_keys: Vec<String>,
    /// What the user gave, as it is: a `#!` script, `#cloud-config`, or packed.
    pub user_data: Vec<u8>,
    /// What the cloud adds.
    pub vendor_data: Option<Vec<u8>>,
    /// Its network cards.
    pub nics: Vec<Nic>,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its hardware address, by which it is found.
    pub mac: String,
    /// The MTU of its network, in bytes.
    pub mtu: u16,
    /// How it gets its address.
    pub address: Address,
}

/// How a network card gets its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// By DHCP.
    Dhcp,
    /// It has this one.
    Static {
        /// The addresses, and the prefix length of their network.
        ipv4: Vec<(Ipv4Addr, u8)>,
        /// The gateway, if this is the card that leads out.
        gateway: Option<Ipv4Addr>,
        /// DNS servers.
        dns: Vec<Ipv4Addr>,
        /// Domains in which names are searched.
        search: Vec<String>,
    },
}

impl Seed {
    /// The disk, as bytes.
    ///
    /// # Errors
    /// There is more than it holds.
    pub fn disk(&self) -> Result<Vec<u8>> {
        let (meta, network) = (self.meta_data(), self.network_config());
        let mut files =
            vec![("meta-data", meta.as_bytes()), ("network-config", network.as_bytes())];
        files.push(("user-data", &self.user_data));
        if let Some(vendor) = &self.vendor_data {
            files.push(("vendor-data", vendor));
        }
        fat::disk("CIDATA", &files).ok_or_else(|| {
            let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
            Error::Refused(format!("{bytes} bytes of instance data: {DISK_BYTES} are possible"))
        })
    }

    /// The text of `meta-data`.
    pub fn meta_data(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line(format!("instance-id: {}", quoted(&self.instance_id)));
        line(format!("local-hostname: {}", quoted(&self.hostname)));
        if !self.public_keys.is_empty() {
            line("public-keys:".to_owned());
            self.public_keys.iter().for_each(|key| line(format!("  - {}", quoted(key))));
        }
        text
    }

    /// The text of `network-config`, version 2.
    pub fn network_config(&self) -> String {
        let mut text = "version: 2\nethernets:".to_owned();
        if self.nics.is_empty() {
            text.push_str(" {}");
        }
        text.push('\n');
        for (index, nic) in self.nics.iter().enumerate() {
            write_nic(&mut text, index, nic);
        }
        text
    }
}

fn write_nic(text: &mut String, index: usize, nic: &Nic) {
    let mac = quoted(&nic.mac.to_ascii_lowercase());
    let mut line = |line: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "    {line}");
    };
    let Nic { mtu, address, .. } = nic;
    let list = |all: Vec<String>| format!("[{}]", all.join(", "));
    let addresses = |all: &[Ipv4Addr]| list(all.iter().map(|a| quoted(&a.to_string())).collect());
    line(format!("match: {{macaddress: {mac}}}"));
    line(format!("set-name: eth{index}"));
    line(format!("mtu: {mtu}"));
    match address {
        Address::Dhcp => line("dhcp4: true".to_owned()),
        Address::Static { ipv4, gateway, dns, search } => {
            let own = ipv4.iter().map(|(address, length)| quoted(&format!("{address}/{length}")));
            line(format!("addresses: {}", list(own.collect())));
            if let Some(gateway) = gateway {
                let (to, via) = (quoted("0.0.0.0/0"), quoted(&gateway.to_string()));
                line(format!("routes: [{{to: {to}, via: {via}}}]"));
            }
            if !dns.is_empty() || !search.is_empty() {
                let search = list(search.iter().map(|domain| quoted(domain)).collect());
                let dns = addresses(dns);
                line(format!("nameservers: {{addresses: {dns}, search: {search}}}"));
            }
        }
    }
    // The name of the entry stands before its lines.
    let at = text.rfind("    match:").unwrap_or(text.len());
    text.insert_str(at, &format!("  eth{index}:\n"));
}

/// A text as a YAML scalar in double quotes, which escapes as JSON does (YAML 1.2, 7.3.1).
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..0xa0).contains(&(c as u32)) => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn seed() -> Seed {
        let ipv4 = vec![(Ipv4Addr::new(10, 0, 0, 7), 24)];
        let address = Address::Static {
            ipv4,
            gateway: Some(Ipv4Addr::new(10, 0, 0, 254)),
            dns: vec![Ipv4Addr::new(100, 100, 2, 136)],
            search: vec!["lab.internal".into()],
        };
        Seed {
            instance_id: "i-1".into(),
            hostname: "web".into(),
            public_keys: vec!["ssh-ed25519 AAAA me\"\nroot: x".into()],
            user_data: b"#!/bin/sh\necho hello\n".to_vec(),
            vendor_data: None,
            nics: vec![
                Nic { mac: "02:00:00:00:00:0A".into(), mtu: 1450, address },
                Nic { mac: "02:00:00:00:00:0b".into(), mtu: 1500, address: Address::Dhcp },
            ],
        }
    }

    #[test]
    fn the_texts_are_what_cloud_init_reads() {
        let meta = "instance-id: \"i-1\"\nlocal-hostname: \"web\"\npublic-keys:\n  \
                    - \"ssh-ed25519 AAAA me\\\"\\u000aroot: x\"\n";
        assert_eq!(seed().meta_data(), meta);
        let network = r#"version: 2
ethernets:
  eth0:
    match: {macaddress: "02:00:00:00:00:0a"}
    set-name: eth0
    mtu: 1450
    addresses: ["10.0.0.7/24"]
    routes: [{to: "0.0.0.0/0", via: "10.0.0.254"}]
    nameservers: {addresses: ["100.100.2.136"], search: ["lab.internal"]}
  eth1:
    match: {macaddress: "02:00:00:00:00:0b"}
    set-name: eth1
    mtu: 1500
    dhcp4: true
"#;
        assert_eq!(seed().network_config(), network);
        assert_eq!(Seed::default().network_config(), "version: 2\nethernets: {}\n");
    }

    #[test]
    fn more_than_the_disk_holds_is_refused() {
        let big = |bytes| Seed { user_data: vec![b'x'; bytes], ..seed() };
        assert!(big(1 << 20).disk().is_ok());
        let error = big(2 << 20).disk().unwrap_err().to_string();
        assert!(error.contains("possible"), "{error}");
    }

    /// Programs that know FAT well find the label and the files.
    #[test]
    fn strangers_read_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cidata");
        let mut seed = seed();
        seed.vendor_data = Some(vec![7; 70_000]);
        std::fs::write(&path, seed.disk().unwrap()).unwrap();
        let ask = |command: &[&str]| {
            let mut child = Command::new(command[0]);
            match child.args(&command[1..]).env("MTOOLS_SKIP_CHECK", "0").output() {
                Ok(output) => Some((output.status.success(), output.stdout)),
                Err(_) => {
                    println!("SKIPPED: strangers_read_the_disk: no {}", command[0]);
                    None
                }
            }
        };
        let disk = path.to_str().unwrap();
        if let Some((ok, text)) = ask(&["/sbin/blkid", "-p", "-o", "export", disk]) {
            let text = String::from_utf8(text).unwrap();
            assert!(
                ok && text.contains("LABEL=CIDATA\n") && text.contains("TYPE=vfat\n"),
                "{text}"
            );
        }
        for (name, bytes) in [
            ("meta-data", seed.meta_data().as_bytes()),
            ("network-config", seed.network_config().as_bytes()),
            ("user-data", &seed.user_data),
            ("vendor-data", &[7; 70_000]),
        ] {
            if let Some((ok, read)) = ask(&["mcopy", "-i", disk, &format!("::{name}"), "-"]) {
                assert!(ok && read == bytes, "{name}");
            }
        }
        if let Some((ok, text)) = ask(&["/sbin/fsck.fat", "-n", disk]) {
            assert!(ok, "{}", String::from_utf8_lossy(&text));
        }
    }
}
