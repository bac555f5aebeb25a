//! What a port or a segment must be by itself, whatever else there is.
//!
//! Pure. The same rules hold for what is asked on the control socket and for what is read back from the state directory.

use crate::address::Mac;
use crate::engine::names::Names;
use crate::engine::view::{PeerView, mask};
use crate::packet::vxlan::VNI_LIMIT;
use crate::underlay::check_endpoint;
use bixi_api::network::{NamedHost, PortAdd, PortLimits, SegmentConfig, SegmentNames};
use bixi_offload::rate::HIGHEST;
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// The most addresses of a port.
pub const ADDRESS_LIMIT: usize = 64;
/// The most pairs of queues of a port.
pub const PAIR_LIMIT: u16 = 32;
/// The most hosts of a segment on other servers: as many as fit a request.
pub const PEER_LIMIT: usize = 32_768;
/// The longest path that a UNIX socket can have, in bytes, with room for the name it is made under.
const SOCKET_PATH: usize = 96;
/// The longest id of a port.
const ID_LENGTH: usize = 64;
/// The smallest MTU that every host must take (RFC 791), and the largest that an IPv4 packet has.
const MTU: std::ops::RangeInclusive<u16> = 576..=65_000;
/// As many DNS servers as a DHCP answer has room for.
const DNS_LIMIT: usize = 8;
/// As many addresses of the card's own DNS server as a DHCP answer has room for, with a route to each.
const NAME_SERVER_LIMIT: usize = 4;
/// The longest domain of a segment's names, in bytes: a DHCP answer has it twice.
const DOMAIN_LENGTH: usize = 64;
/// The longest name of a host, in bytes.
const NAME_LENGTH: usize = 128;
/// The longest label of a name (RFC 1035, 2.3.4).
const LABEL_LENGTH: usize = 63;
/// The most names of a segment: as many as fit a request.
const NAME_LIMIT: usize = 32_768;
/// As many addresses of a name as fit the smallest answer (RFC 1035, 2.3.4), so that none is ever cut.
const NAME_ADDRESS_LIMIT: usize = 16;

/// What is wrong: a code and a sentence.
pub type Wrong = (&'static str, String);

/// Whether `id` can be a port's: letters, digits, `-` and `_`, so that it can be a file's name.
///
/// # Errors
/// What is wrong with it.
pub fn check_id(id: &str) -> Result<(), Wrong> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let good = !id.is_empty()
        && id.len() <= ID_LENGTH
        && id.bytes().all(plain)
        && id.as_bytes()[0].is_ascii_alphanumeric();
    if good {
        return Ok(());
    }
    let shown: String = id.chars().take(ID_LENGTH).collect();
    let rule =
        format!("up to {ID_LENGTH} letters, digits, - and _, beginning with a letter or digit");
    Err(("BadId", format!("`{shown}` is no id of a port: {rule}.")))
}

/// Whether `vni` can be a segment's.
///
/// # Errors
/// What is wrong with it.
pub fn check_vni(vni: u32) -> Result<(), Wrong> {
    if (1..VNI_LIMIT).contains(&vni) {
        return Ok(());
    }
    Err(("BadSegment", format!("{vni} is no segment: 1 to {} are possible.", VNI_LIMIT - 1)))
}

/// Whether an address can be a host's.
fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_loopback()
        || address.octets()[0] == 0)
}

fn host_mac(text: &str) -> Result<Mac, Wrong> {
    let mac: Mac = text.parse().map_err(|e| ("BadMac", format!("{e}.")))?;
    if mac.unicast() {
        return Ok(mac);
    }
    Err(("BadMac", format!("{mac} cannot be one host's hardware address.")))
}

/// Whether a port can be as asked; its hardware address.
///
/// # Errors
/// What is wrong with it.
pub fn check_port(add: &PortAdd) -> Result<Mac, Wrong> {
    check_vni(add.segment)?;
    let mac = host_mac(&add.mac)?;
    if add.ipv4.is_empty() || add.ipv4.len() > ADDRESS_LIMIT {
        let count = add.ipv4.len();
        return Err((
            "BadAddress",
            format!("{count} addresses: 1 to {ADDRESS_LIMIT} are possible."),
        ));
    }
    if let Some(bad) = add.ipv4.iter().find(|address| !is_host(**address)) {
        return Err(("BadAddress", format!("{bad} cannot be a host's address.")));
    }
    let distinct: HashSet<_> = add.ipv4.iter().collect();
    if distinct.len() != add.ipv4.len() {
        return Err(("BadAddress", "an address is given twice.".to_owned()));
    }
    if !(1..=PAIR_LIMIT).contains(&add.queue_pairs) {
        let pairs = add.queue_pairs;
        return Err((
            "BadQueues",
            format!("{pairs} pairs of queues: 1 to {PAIR_LIMIT} are possible."),
        ));
    }
    let (socket, shown) = (&add.socket, add.socket.display());
    if !socket.is_absolute() || socket.file_name().is_none() {
        return Err(("BadSocket", format!("the socket `{shown}` is not an absolute path.")));
    }
    if socket.as_os_str().len() > SOCKET_PATH {
        let wrong = format!("the socket {shown} has a path of more than {SOCKET_PATH} bytes.");
        return Err(("BadSocket", wrong));
    }
    check_limits(&add.limits)?;
    Ok(mac)
}

/// Whether a port can have these limits.
fn check_limits(limits: &PortLimits) -> Result<(), Wrong> {
    for (rate, what, most) in [
        (limits.packets_per_second, "packets", HIGHEST),
        (limits.bits_per_second, "bits", HIGHEST * 8),
    ] {
        if let Some(rate) = rate.filter(|rate| !(1..=most).contains(rate)) {
            let wrong = format!(
                "{rate} {what} a second: 1 to {most} are possible, and what is left out is not limited."
            );
            return Err(("BadLimit", wrong));
        }
    }
    Ok(())
}

/// What the engine needs of a segment that can be as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Its hosts on other servers.
    pub peers: Vec<PeerView>,
    /// Its names.
    pub names: Option<Arc<Names>>,
}

/// Whether a segment can be as asked, on a process with the tunnel end point `own`; what the engine needs of it.
///
/// # Errors
/// What is wrong with it.
pub fn check_segment(
    vni: u32,
    config: &SegmentConfig,
    own: Option<SocketAddr>,
) -> Result<Parts, Wrong> {
    check_vni(vni)?;
    check_network(config)?;
    if !MTU.contains(&config.mtu) {
        let (mtu, least, most) = (config.mtu, MTU.start(), MTU.end());
        return Err(("BadMtu", format!("an MTU of {mtu} bytes: {least} to {most} are possible.")));
    }
    if config.dns.len() > DNS_LIMIT {
        return Err(("BadDns", format!("more than {DNS_LIMIT} DNS servers.")));
    }
    if let Some(bad) = config.dns.iter().find(|address| !is_host(**address)) {
        return Err(("BadDns", format!("{bad} cannot be a DNS server's address.")));
    }
    let names = config.names.as_ref().map(|names| check_names(names, config)).transpose()?;
    Ok(Parts { peers: check_peers(config, own)?, names: names.map(Arc::new) })
}

fn check_names(names: &SegmentNames, config: &SegmentConfig) -> Result<Names, Wrong> {
    let SegmentNames { servers, domain, hosts } = names;
    if servers.is_empty() || servers.len() > NAME_SERVER_LIMIT {
        let count = servers.len();
        let wrong = format!("names at {count} addresses: 1 to {NAME_SERVER_LIMIT} are possible.");
        return Err(("BadNames", wrong));
    }
    let others = |address| config.peers.iter().any(|peer| peer.ipv4 == address);
    if let Some(bad) = servers.iter().find(|address| !is_host(**address) || others(**address)) {
        return Err(("BadNames", format!("{bad} cannot be the address of the card's DNS server.")));
    }
    if let Some(domain) = domain {
        check_name(domain, DOMAIN_LENGTH)?;
    }
    if hosts.len() > NAME_LIMIT {
        return Err(("BadNames", format!("more than {NAME_LIMIT} names.")));
    }
    let mut known =
        Names::new(servers.clone(), domain.as_deref(), config.network, config.prefix_len);
    for NamedHost { name, ipv4 } in hosts {
        check_name(name, NAME_LENGTH)?;
        if !is_host(*ipv4) {
            return Err(("BadNames", format!("{ipv4} of {name} cannot be a host's address.")));
        }
        if known.add(name, *ipv4) > NAME_ADDRESS_LIMIT {
            let wrong = format!("{name} has more than {NAME_ADDRESS_LIMIT} addresses.");
            return Err(("BadNames", wrong));
        }
    }
    Ok(known)
}

/// Whether `name` is a host name (RFC 1123, 2.1) of at most `length` bytes.
fn check_name(name: &str, length: usize) -> Result<(), Wrong> {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.len() <= LABEL_LENGTH
            && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    };
    if name.len() <= length && name.split('.').all(label) {
        return Ok(());
    }
    let shown: String = name.chars().take(length).collect();
    let rule = "letters, digits and - between dots, no - at an end";
    Err(("BadNames", format!("`{shown}` is no name: up to {length} bytes, {rule}.")))
}

fn check_network(config: &SegmentConfig) -> Result<(), Wrong> {
    let (network, prefix_len) = (config.network, config.prefix_len);
    if !(8..=30).contains(&prefix_len) {
        return Err((
            "BadNetwork",
            format!("a prefix of {prefix_len} bits: 8 to 30 are possible."),
        ));
    }
    let network_mask = u32::from(mask(prefix_len));
    if u32::from(network) & !network_mask != 0 {
        let right = Ipv4Addr::from(u32::from(network) & network_mask);
        let wrong = format!("{network}/{prefix_len} is no network: did you mean {right}?");
        return Err(("BadNetwork", wrong));
    }
    let Some(gateway) = config.gateway else { return Ok(()) };
    let host = u32::from(gateway) & !network_mask;
    let inside = u32::from(gateway) & network_mask == u32::from(network);
    if !inside || host == 0 || host == !network_mask || !is_host(gateway) {
        let wrong = format!("the gateway {gateway} is no host of {network}/{prefix_len}.");
        return Err(("BadGateway", wrong));
    }
    Ok(())
}

fn check_peers(config: &SegmentConfig, own: Option<SocketAddr>) -> Result<Vec<PeerView>, Wrong> {
    if config.peers.len() > PEER_LIMIT {
        return Err(("BadPeer", format!("more than {PEER_LIMIT} peers.")));
    }
    let Some(own) = own.or((config.peers.is_empty()).then_some(NOWHERE)) else {
        return Err((
            "NoUnderlay",
            "there are peers, but this process has no underlay.".to_owned(),
        ));
    };
    let mut addresses = HashSet::new();
    let mut peers = Vec::with_capacity(config.peers.len());
    for peer in &config.peers {
        let (ipv4, endpoint) = (peer.ipv4, peer.endpoint);
        let mac = host_mac(&peer.mac)?;
        if !is_host(ipv4) || Some(ipv4) == config.gateway {
            return Err(("BadPeer", format!("{ipv4} cannot be a peer's address.")));
        }
        // One host may have several addresses, but an address has one host.
        if !addresses.insert(ipv4) {
            return Err(("BadPeer", format!("{ipv4} is given to two peers.")));
        }
        if let Err(why) = check_endpoint(endpoint) {
            return Err(("BadPeer", format!("the end point {endpoint} of {ipv4} {why}.")));
        }
        if endpoint.is_ipv4() != own.is_ipv4() {
            let wrong =
                format!("the end point {endpoint} of {ipv4} is not of the family of {own}.");
            return Err(("BadPeer", wrong));
        }
        peers.push(PeerView { mac, ipv4, endpoint });
    }
    Ok(peers)
}

/// Stands for the end point of a process that has none and needs none.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::switch::rates::Rates;
    use bixi_api::network::{NamedHost, Peer, SegmentNames};

    pub fn port(n: u8) -> PortAdd {
        PortAdd {
            epoch: 5,
            socket: format!("/run/port-{n}").into(),
            segment: 7,
            mac: format!("02:00:00:00:00:{n:02x}"),
            ipv4: vec![Ipv4Addr::new(10, 0, 0, n)],
            queue_pairs: 1,
            require_sealed: true,
            limits: PortLimits { packets_per_second: Some(1000), bits_per_second: Some(9) },
        }
    }

    pub fn named(name: &str, n: u8) -> NamedHost {
        NamedHost { name: name.into(), ipv4: Ipv4Addr::new(10, 0, 0, n) }
    }

    pub fn segment() -> SegmentConfig {
        SegmentConfig {
            generation: 3,
            network: Ipv4Addr::new(10, 0, 0, 0),
            prefix_len: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 0, 254)),
            dns: vec![],
            mtu: 1450,
            peers: vec![Peer {
                mac: "02:00:00:00:00:09".into(),
                ipv4: Ipv4Addr::new(10, 0, 0, 9),
                endpoint: "192.0.2.2:4789".parse().unwrap(),
            }],
            names: Some(SegmentNames {
                servers: bixi_api::network::name_servers(),
                domain: Some("lab.internal".into()),
                hosts: vec![named("web", 9), named("Db", 1), named("web", 8)],
            }),
        }
    }

    const OWN: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 4789);

    #[test]
    fn a_port_that_cannot_be_is_refused_by_name() {
        assert_eq!(check_port(&port(1)).unwrap(), Mac([2, 0, 0, 0, 0, 1]));
        let good = port(1);
        let a = good.ipv4[0];
        let packets = |n| PortLimits { packets_per_second: Some(n), ..PortLimits::NONE };
        let bits = |n| PortLimits { bits_per_second: Some(n), ..PortLimits::NONE };
        // Whatever passes here, the switch can do.
        for limits in [PortLimits::NONE, packets(1), packets(HIGHEST), bits(1), bits(HIGHEST * 8)] {
            assert!(check_port(&PortAdd { limits, ..good.clone() }).is_ok());
            assert!(Rates::new(&limits).is_ok());
        }
        for (bad, code) in [
            (PortAdd { segment: 0, ..good.clone() }, "BadSegment"),
            (PortAdd { segment: 1 << 24, ..good.clone() }, "BadSegment"),
            (PortAdd { mac: "x".into(), ..good.clone() }, "BadMac"),
            (PortAdd { mac: "ff:ff:ff:ff:ff:ff".into(), ..good.clone() }, "BadMac"),
            (PortAdd { ipv4: vec![], ..good.clone() }, "BadAddress"),
            (PortAdd { ipv4: vec![a, a], ..good.clone() }, "BadAddress"),
            (PortAdd { ipv4: vec![Ipv4Addr::BROADCAST], ..good.clone() }, "BadAddress"),
            (PortAdd { ipv4: vec![Ipv4Addr::new(224, 0, 0, 1)], ..good.clone() }, "BadAddress"),
            (PortAdd { queue_pairs: 0, ..good.clone() }, "BadQueues"),
            (PortAdd { queue_pairs: 33, ..good.clone() }, "BadQueues"),
            (PortAdd { socket: "port".into(), ..good.clone() }, "BadSocket"),
            (PortAdd { limits: packets(0), ..good.clone() }, "BadLimit"),
            (PortAdd { limits: packets(HIGHEST + 1), ..good.clone() }, "BadLimit"),
            (PortAdd { limits: bits(0), ..good.clone() }, "BadLimit"),
            (PortAdd { limits: bits(HIGHEST * 8 + 1), ..good.clone() }, "BadLimit"),
            (PortAdd { socket: "/".into(), ..good.clone() }, "BadSocket"),
            (
                PortAdd { socket: format!("/{}", "x".repeat(99)).into(), ..good.clone() },
                "BadSocket",
            ),
        ] {
            assert_eq!(check_port(&bad).unwrap_err().0, code, "{bad:?}");
        }
    }

    #[test]
    fn an_id_can_be_a_files_name() {
        for good in ["eni-1", "p", "A_b-9"] {
            assert!(check_id(good).is_ok());
        }
        for bad in ["", ".", "..", "a/b", "-x", "a.b", "é", &"x".repeat(65)] {
            assert_eq!(check_id(bad).unwrap_err().0, "BadId", "{bad}");
        }
    }

    #[test]
    fn a_segment_that_cannot_be_is_refused_by_name() {
        let good = segment();
        assert_eq!(check_segment(7, &good, Some(OWN)).unwrap().peers.len(), 1);
        let peer = good.peers[0].clone();
        let at = |endpoint: &str| Peer { endpoint: endpoint.parse().unwrap(), ..peer.clone() };
        let gateway = |n| Some(Ipv4Addr::new(10, 0, 0, n));
        for (bad, code) in [
            (SegmentConfig { network: [10, 0, 0, 1].into(), ..good.clone() }, "BadNetwork"),
            (SegmentConfig { prefix_len: 31, ..good.clone() }, "BadNetwork"),
            (SegmentConfig { gateway: gateway(255), ..good.clone() }, "BadGateway"),
            (SegmentConfig { gateway: gateway(0), ..good.clone() }, "BadGateway"),
            (SegmentConfig { gateway: Some([10, 0, 1, 1].into()), ..good.clone() }, "BadGateway"),
            (SegmentConfig { gateway: gateway(9), ..good.clone() }, "BadPeer"),
            (SegmentConfig { mtu: 500, ..good.clone() }, "BadMtu"),
            (SegmentConfig { dns: vec![[1, 1, 1, 1].into(); 9], ..good.clone() }, "BadDns"),
            (SegmentConfig { peers: vec![peer.clone(), peer.clone()], ..good.clone() }, "BadPeer"),
            (SegmentConfig { peers: vec![at("192.0.2.2:0")], ..good.clone() }, "BadPeer"),
            (SegmentConfig { peers: vec![at("0.0.0.0:4789")], ..good.clone() }, "BadPeer"),
            (SegmentConfig { peers: vec![at("[2001:db8::1]:4789")], ..good.clone() }, "BadPeer"),
        ] {
            assert_eq!(check_segment(7, &bad, Some(OWN)).unwrap_err().0, code, "{bad:?}");
        }
        let names = good.names.clone().unwrap();
        let host = |name: &str, n| SegmentNames { hosts: vec![named(name, n)], ..names.clone() };
        let at = |n| SegmentNames { servers: vec![[10, 0, 0, n].into()], ..names.clone() };
        for bad in [
            SegmentNames { servers: vec![], ..names.clone() },
            SegmentNames { servers: vec![[1, 1, 1, 1].into(); 5], ..names.clone() },
            SegmentNames { domain: Some(String::new()), ..names.clone() },
            SegmentNames { domain: Some("a..b".into()), ..names.clone() },
            SegmentNames { domain: Some("x.".repeat(32) + "x"), ..names.clone() },
            SegmentNames { hosts: (1..=17).map(|n| named("web", n)).collect(), ..names.clone() },
            SegmentNames { hosts: vec![named("a", 1); 32_769], ..names.clone() },
            host("", 1),
            host("-a", 1),
            host("a-", 1),
            host("a_b", 1),
            host("ä", 1),
            host(&"x".repeat(64), 1),
            // A peer's address.
            at(9),
        ] {
            let bad = SegmentConfig { names: Some(bad), ..good.clone() };
            assert_eq!(check_segment(7, &bad, Some(OWN)).unwrap_err().0, "BadNames");
        }
        for fine in [host("a.b-c.1", 1), at(254)] {
            let fine = SegmentConfig { names: Some(fine), ..good.clone() };
            assert!(check_segment(7, &fine, Some(OWN)).is_ok());
        }
        assert_eq!(check_segment(7, &good, None).unwrap_err().0, "NoUnderlay");
        let alone = SegmentConfig { peers: vec![], ..good };
        assert!(check_segment(7, &alone, None).is_ok());
        assert_eq!(check_segment(0, &alone, None).unwrap_err().0, "BadSegment");
    }
}
