//! What ports and segments there are, and which changes are allowed: the pure part of the driver.
//!
//! ```text
//! port     absent ── put ──► served (epoch) ── put, higher epoch ──► served (that epoch)
//!            ▲                  │ delete
//!            └──────────────────┴──► deleted: only its epoch is remembered, a lower one stays refused
//! ```
//!
//! Invariants: within a segment a hardware address and an address belong to one port; a socket belongs to one port; a
//! port's epoch and a segment's generation never fall.

use super::records;
use super::rules::{self, Parts, Wrong};
use crate::address::Mac;
use crate::engine::view::{Network, PortView, SegmentView};
use crate::metadata;
use crate::metadata::documents::Documents;
use bixi_api::network::{HttpTokens, MetadataDescription, PortAdd, PortMetadata, SegmentConfig};
use bixi_api::state::{Declared, Movable};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

/// What a `PUT` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is so already.
    None,
    /// It is new.
    Make,
    /// It takes the place of what there is.
    Replace,
    /// It is so already but for its limits, which may change while it goes on.
    Limit,
}

/// A port as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPort {
    /// What was asked for.
    pub add: PortAdd,
    /// Its hardware address.
    pub mac: Mac,
}

/// A segment as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedSegment {
    /// What was asked for.
    pub config: SegmentConfig,
    /// What the engine needs of it.
    pub parts: Parts,
}

/// The metadata of a port as it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedMetadata {
    /// Grows with every change.
    pub generation: u64,
    /// Whether the guest needs a token.
    pub tokens_required: bool,
    /// The documents.
    pub documents: Documents,
}

impl WantedMetadata {
    /// Its outside.
    pub fn describe(&self) -> MetadataDescription {
        let tokens = if self.tokens_required { HttpTokens::Required } else { HttpTokens::Optional };
        MetadataDescription {
            generation: self.generation,
            http_tokens: tokens,
            documents: self.documents.iter().count(),
            bytes: self.documents.iter().map(|(_, bytes)| bytes.len()).sum(),
        }
    }
}

/// A deleted port of which the epoch is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// The highest epoch that it has seen.
    pub epoch: u64,
    /// When it was deleted, in seconds since 1970.
    pub at: u64,
}

/// Everything that was asked for.
#[derive(Debug, Default)]
pub struct Model {
    /// Ports by id.
    pub ports: BTreeMap<String, WantedPort>,
    /// Segments by VXLAN network identifier.
    pub segments: BTreeMap<u32, WantedSegment>,
    /// Metadata by the id of its port.
    pub metadata: BTreeMap<String, WantedMetadata>,
    /// Deleted ports by id.
    pub deleted: BTreeMap<String, Deleted>,
    /// This process's tunnel end point.
    pub own: Option<SocketAddr>,
}

/// How many deleted ports are remembered; of more, those deleted first are forgotten.
pub const DELETED_LIMIT: usize = 16_384;

/// Why a change is not allowed: a code, a sentence, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// A stable word.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: &'static str,
    /// Whether the request itself cannot be, rather than contradict what there is.
    pub bad: bool,
}

impl From<Wrong> for Refused {
    fn from((code, message): Wrong) -> Self {
        Self { code, message, hint: "", bad: true }
    }
}

fn conflict(code: &'static str, message: String, hint: &'static str) -> Refused {
    Refused { code, message, hint, bad: false }
}

/// The addresses of a segment that the card answers at: the gateway's, and those of its DNS server.
fn card_addresses(config: &SegmentConfig) -> impl Iterator<Item = Ipv4Addr> {
    let servers = config.names.iter().flat_map(|names| &names.servers);
    config.gateway.into_iter().chain(servers.copied())
}

/// A port with its name, as it is written down and moves.
#[derive(Debug, Clone, Copy)]
pub struct PortRecord<'a> {
    /// Its id.
    pub id: &'a str,
    /// What was asked for.
    pub port: &'a WantedPort,
}

impl Movable for PortRecord<'_> {
    fn declare(&self) -> Declared {
        Declared::State(records::port_payload(self.id, self.port))
    }
}

/// The metadata of a port, as it is written down and moves.
#[derive(Debug, Clone, Copy)]
pub struct MetadataRecord<'a> {
    /// The port's id.
    pub id: &'a str,
    /// What was told.
    pub metadata: &'a WantedMetadata,
}

impl Movable for MetadataRecord<'_> {
    fn declare(&self) -> Declared {
        Declared::State(records::metadata_payload(self.id, self.metadata))
    }
}

/// A segment with its number, as it is written down and moves.
#[derive(Debug, Clone, Copy)]
pub struct SegmentRecord<'a> {
    /// Its VXLAN network identifier.
    pub vni: u32,
    /// What was asked for.
    pub config: &'a SegmentConfig,
}

impl Movable for SegmentRecord<'_> {
    fn declare(&self) -> Declared {
        Declared::State(records::segment_payload(self.vni, self.config))
    }
}

impl Model {
    /// Whether port `id` may be as asked, and what that would change.
    ///
    /// # Errors
    /// Why not.
    pub fn check_port(&self, id: &str, add: &PortAdd) -> Result<(Change, Mac), Refused> {
        rules::check_id(id)?;
        let mac = rules::check_port(add)?;
        let seen = self.ports.get(id).map(|port| port.add.epoch);
        let seen = seen.or(self.deleted.get(id).map(|deleted| deleted.epoch)).unwrap_or(0);
        if add.epoch < seen {
            let message = format!("port {id} has seen epoch {seen}; {} is older.", add.epoch);
            return Err(conflict("StaleEpoch", message, "Ask whoever places the instance."));
        }
        let change = match self.ports.get(id) {
            None => Change::Make,
            Some(port) if port.add == *add => return Ok((Change::None, mac)),
            Some(port) if PortAdd { limits: add.limits, ..port.add.clone() } == *add => {
                return Ok((Change::Limit, mac));
            }
            Some(port) if port.add.epoch == add.epoch => {
                let message = format!("port {id} is otherwise at epoch {seen}.");
                return Err(conflict("PortExists", message, "Delete it, or give a higher epoch."));
            }
            Some(_) => Change::Replace,
        };
        self.check_neighbours(id, add, mac)?;
        Ok((change, mac))
    }

    /// Whether no other port has what this one wants for itself.
    fn check_neighbours(&self, id: &str, add: &PortAdd, mac: Mac) -> Result<(), Refused> {
        for (other_id, other) in self.ports.iter().filter(|(other, _)| *other != id) {
            if other.add.socket == add.socket {
                let message = format!("port {other_id} listens on {}.", add.socket.display());
                return Err(conflict("SocketInUse", message, "Choose another path."));
            }
            if other.add.segment != add.segment {
                continue;
            }
            if other.mac == mac {
                let message = format!("port {other_id} of segment {} has {mac}.", add.segment);
                return Err(conflict("AddressInUse", message, "Choose another hardware address."));
            }
            if let Some(taken) = add.ipv4.iter().find(|ipv4| other.add.ipv4.contains(ipv4)) {
                let message = format!("port {other_id} of segment {} has {taken}.", add.segment);
                return Err(conflict("AddressInUse", message, "Choose another address."));
            }
        }
        let segment = self.segments.get(&add.segment);
        let own = segment.into_iter().flat_map(|segment| card_addresses(&segment.config));
        let mut own = own.chain(metadata::ADDRESSES);
        if let Some(taken) = own.find(|own| add.ipv4.contains(own)) {
            let message = format!("{taken} is the card's own in segment {}.", add.segment);
            return Err(conflict("AddressInUse", message, "Choose another address."));
        }
        Ok(())
    }

    /// Whether the metadata of port `id`, which is there, may be as told, and what that would change.
    ///
    /// # Errors
    /// Why not.
    pub fn check_metadata(
        &self,
        id: &str,
        told: &PortMetadata,
    ) -> Result<(Change, WantedMetadata), Refused> {
        let documents = Documents::decode(&told.documents)
            .map_err(|message| Refused::from(("BadMetadata", message)))?;
        let tokens_required = told.http_tokens == HttpTokens::Required;
        let wanted = WantedMetadata { generation: told.generation, tokens_required, documents };
        let change = match self.metadata.get(id) {
            None => Change::Make,
            Some(known) if *known == wanted => Change::None,
            Some(known) if known.generation > told.generation => {
                let (has, asked) = (known.generation, told.generation);
                let message =
                    format!("the metadata of {id} is at generation {has}; {asked} is older.");
                return Err(conflict(
                    "StaleGeneration",
                    message,
                    "Ask whoever places the instance.",
                ));
            }
            Some(known) if known.generation == told.generation => {
                let message =
                    format!("the metadata of {id} is otherwise at generation {}.", told.generation);
                return Err(conflict("MetadataExists", message, "Give a higher generation."));
            }
            Some(_) => Change::Replace,
        };
        Ok((change, wanted))
    }

    /// Whether segment `vni` may be as asked, and what that would change.
    ///
    /// # Errors
    /// Why not.
    pub fn check_segment(
        &self,
        vni: u32,
        config: &SegmentConfig,
    ) -> Result<(Change, Parts), Refused> {
        let parts = rules::check_segment(vni, config, self.own).map_err(|wrong| {
            let hint = match wrong.0 {
                "NoUnderlay" => "Start the process with --underlay IP:4789.",
                _ => "",
            };
            Refused { hint, ..wrong.into() }
        })?;
        let change = match self.segments.get(&vni) {
            None => Change::Make,
            Some(segment) if segment.config == *config => return Ok((Change::None, parts)),
            Some(segment) if segment.config.generation > config.generation => {
                let (has, asked) = (segment.config.generation, config.generation);
                let message = format!("segment {vni} is at generation {has}; {asked} is older.");
                return Err(conflict("StaleGeneration", message, "Ask whoever plans the network."));
            }
            Some(segment) if segment.config.generation == config.generation => {
                let generation = config.generation;
                let message = format!("segment {vni} is otherwise at generation {generation}.");
                return Err(conflict("SegmentExists", message, "Give a higher generation."));
            }
            Some(_) => Change::Replace,
        };
        for own in card_addresses(config) {
            let owner = self.ports_of(vni).find(|(_, port)| port.add.ipv4.contains(&own));
            if let Some((id, _)) = owner {
                let message = format!("the card's own address {own} is that of port {id}.");
                return Err(conflict("AddressInUse", message, "Choose another address."));
            }
        }
        Ok((change, parts))
    }

    /// Whether segment `vni` may go.
    ///
    /// # Errors
    /// Why not.
    pub fn check_segment_end(&self, vni: u32) -> Result<(), Refused> {
        if let Some((id, _)) = self.ports_of(vni).next() {
            let message = format!("port {id} is in segment {vni}.");
            return Err(conflict("SegmentInUse", message, "Delete its ports first."));
        }
        Ok(())
    }

    /// The ports of a segment.
    pub fn ports_of(&self, vni: u32) -> impl Iterator<Item = (&String, &WantedPort)> {
        self.ports.iter().filter(move |(_, port)| port.add.segment == vni)
    }

    /// The MTU of a segment's guests.
    pub fn mtu(&self, vni: u32) -> u16 {
        let told = self.segments.get(&vni).map(|segment| segment.config.mtu);
        told.unwrap_or(crate::engine::view::DEFAULT_MTU)
    }

    /// What the engine is to know of a segment, with these of its ports.
    pub fn view<'a>(
        &self,
        vni: u32,
        epoch: u32,
        ports: impl Iterator<Item = &'a PortView>,
    ) -> SegmentView {
        let told = self.segments.get(&vni);
        let network = told.map(|segment| Network {
            prefix_len: segment.config.prefix_len,
            gateway: segment.config.gateway,
            dns: segment.config.dns.clone(),
            names: segment.parts.names.clone(),
        });
        let peers = told.map(|segment| segment.parts.peers.as_slice()).unwrap_or_default();
        let peers = peers.iter().copied();
        SegmentView::new(vni, epoch, self.mtu(vni), network, ports, peers, self.own)
    }

    /// Remembers the epoch of a port that is deleted now; returns the ids that are forgotten for it.
    pub fn remember_deleted(&mut self, id: &str, deleted: Deleted) -> Vec<String> {
        self.deleted.insert(id.to_owned(), deleted);
        let mut forgotten = Vec::new();
        while self.deleted.len() > DELETED_LIMIT {
            let oldest = self.deleted.iter().min_by_key(|(_, deleted)| deleted.at);
            let Some(oldest) = oldest.map(|(id, _)| id.clone()) else { break };
            self.deleted.remove(&oldest);
            forgotten.push(oldest);
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::tests::{port, segment};
    use super::*;

    fn model() -> Model {
        let mut model = Model { own: Some("192.0.2.1:4789".parse().unwrap()), ..Model::default() };
        let add = port(1);
        let mac = rules::check_port(&add).unwrap();
        model.ports.insert("eni-1".into(), WantedPort { add, mac });
        let config = segment();
        let parts = rules::check_segment(7, &config, model.own).unwrap();
        model.segments.insert(7, WantedSegment { config, parts });
        model
    }

    fn code<T: std::fmt::Debug>(result: Result<T, Refused>) -> &'static str {
        result.unwrap_err().code
    }

    #[test]
    fn epochs_decide_about_a_port() {
        let mut model = model();
        let same = port(1);
        assert_eq!(model.check_port("eni-1", &same).unwrap().0, Change::None);
        let older = PortAdd { epoch: 4, ..same.clone() };
        assert_eq!(code(model.check_port("eni-1", &older)), "StaleEpoch");
        let other = PortAdd { queue_pairs: 2, ..same.clone() };
        assert_eq!(code(model.check_port("eni-1", &other)), "PortExists");
        let limits = bixi_api::network::PortLimits::NONE;
        let limited = PortAdd { limits, ..same.clone() };
        assert_eq!(model.check_port("eni-1", &limited).unwrap().0, Change::Limit);
        let newer = PortAdd { epoch: 6, queue_pairs: 2, ..same.clone() };
        assert_eq!(model.check_port("eni-1", &newer).unwrap().0, Change::Replace);

        model.ports.clear();
        model.remember_deleted("eni-1", Deleted { epoch: 5, at: 1 });
        assert_eq!(code(model.check_port("eni-1", &older)), "StaleEpoch");
        assert_eq!(model.check_port("eni-1", &same).unwrap().0, Change::Make);
    }

    #[test]
    fn what_one_port_has_another_cannot() {
        let model = model();
        let other = port(2);
        assert_eq!(model.check_port("eni-2", &other).unwrap().0, Change::Make);
        let taken = port(1);
        for (bad, code_) in [
            (PortAdd { socket: taken.socket.clone(), ..other.clone() }, "SocketInUse"),
            (PortAdd { mac: taken.mac.clone(), ..other.clone() }, "AddressInUse"),
            (PortAdd { ipv4: taken.ipv4.clone(), ..other.clone() }, "AddressInUse"),
            (PortAdd { ipv4: vec![[10, 0, 0, 254].into()], ..other.clone() }, "AddressInUse"),
            (PortAdd { ipv4: vec![[100, 100, 2, 136].into()], ..other.clone() }, "AddressInUse"),
        ] {
            assert_eq!(code(model.check_port("eni-2", &bad)), code_, "{bad:?}");
        }
        // Another segment is another world.
        let elsewhere = PortAdd { segment: 8, socket: other.socket, ..taken };
        assert_eq!(model.check_port("eni-2", &elsewhere).unwrap().0, Change::Make);
    }

    #[test]
    fn generations_decide_about_a_segment() {
        let model = model();
        let same = segment();
        assert_eq!(model.check_segment(7, &same).unwrap().0, Change::None);
        let with = |generation, mtu| SegmentConfig { generation, mtu, ..same.clone() };
        assert_eq!(code(model.check_segment(7, &with(2, 1400))), "StaleGeneration");
        assert_eq!(code(model.check_segment(7, &with(3, 1400))), "SegmentExists");
        assert_eq!(model.check_segment(7, &with(4, 1400)).unwrap().0, Change::Replace);
        assert_eq!(model.check_segment(8, &with(1, 1400)).unwrap().0, Change::Make);
        let gateway = Some([10, 0, 0, 1].into());
        let onto_a_port = SegmentConfig { generation: 4, gateway, ..same.clone() };
        assert_eq!(code(model.check_segment(7, &onto_a_port)), "AddressInUse");
        let mut onto_a_port = with(4, 1450);
        onto_a_port.names.as_mut().unwrap().servers[0] = [10, 0, 0, 1].into();
        assert_eq!(code(model.check_segment(7, &onto_a_port)), "AddressInUse");
        assert_eq!(code(model.check_segment_end(7)), "SegmentInUse");
        assert!(model.check_segment_end(8).is_ok());
    }

    #[test]
    fn ports_and_segments_travel_whole() {
        let model = model();
        let port = PortRecord { id: "eni-1", port: &model.ports["eni-1"] };
        let Declared::State(payload) = port.declare() else { panic!() };
        let served = records::DecodedPort::Served(model.ports["eni-1"].clone());
        assert_eq!(records::decode_port(&payload).unwrap(), ("eni-1".to_owned(), served));
        let segment = SegmentRecord { vni: 7, config: &model.segments[&7].config };
        let Declared::State(payload) = segment.declare() else { panic!() };
        let decoded = records::decode_segment(&payload, model.own).unwrap();
        assert_eq!(decoded, (7, model.segments[&7].clone()));
    }

    #[test]
    fn deleted_ports_are_remembered_up_to_a_limit() {
        let mut model = Model::default();
        for n in 0..DELETED_LIMIT as u64 {
            assert!(
                model.remember_deleted(&format!("p{n}"), Deleted { epoch: n, at: n }).is_empty()
            );
        }
        let forgotten = model.remember_deleted("last", Deleted { epoch: 1, at: 1 << 40 });
        assert_eq!(forgotten, ["p0"]);
    }
}
