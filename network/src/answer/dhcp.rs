//! DHCPv4 (RFC 2131, 2132): one server per port, which gives the port's first address and nothing else.
//!
//! ```text
//! DISCOVER ─► OFFER      REQUEST for the port's address ─► ACK, the lease begins
//! INFORM   ─► ACK        REQUEST for any other address  ─► NAK      RELEASE, DECLINE ─► the lease ends
//! ```
//!
//! Invariants: [`answer`] is a pure function of the request and of what the card was told; any bytes give an answer or
//! none, never a panic; a request that names another server, or another hardware address than the port's, gets none. The
//! address is never taken from a pool: a lease here is a record of what the guest was told, not a right.

use super::{push_ethernet, push_ipv4, push_udp};
use crate::address::Mac;
use crate::packet::{self, ETHERNET, Ipv4};
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpOptionWriter,
    DhcpPacket,
};
use std::net::Ipv4Addr;

/// How long a lease lasts unless renewed, in seconds.
pub const LEASE_SECONDS: u32 = 86_400;
/// DHCP messages are at least this long for old clients (RFC 951).
const SHORTEST: usize = 300;
/// Bytes of the fixed part, magic number included.
const FIXED: usize = 240;
/// As many DNS servers are announced as fit any client's buffer.
const DNS_LIMIT: usize = 8;

/// What tells DHCP from BOOTP.
const MAGIC: u32 = 0x6382_5363;

/// Option numbers (RFC 2132; 119: RFC 3397; 121: RFC 3442).
mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const REQUESTED: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const RENEWAL: u8 = 58;
    pub const REBINDING: u8 = 59;
    pub const CLIENT_ID: u8 = 61;
    pub const SEARCH: u8 = 119;
    pub const ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// What a port's guest is told.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// The port's hardware address.
    pub mac: Mac,
    /// The address it gets.
    pub address: Ipv4Addr,
    /// The network's mask.
    pub mask: Ipv4Addr,
    /// The gateway, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// DNS servers.
    pub dns: &'a [Ipv4Addr],
    /// The domain in which names are searched.
    pub domain: Option<&'a str>,
    /// Addresses outside of the network at which the card answers: a guest without gateway needs a route to them.
    pub services: &'a [Ipv4Addr],
    /// The guests' MTU in bytes.
    pub mtu: u16,
    /// The server's address, as the guest sees it.
    pub server: Ipv4Addr,
    /// The server's hardware address.
    pub server_mac: Mac,
}

/// What becomes of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// It stays as it is.
    None,
    /// It begins or is renewed now.
    Given,
    /// The guest gave it back.
    Ended,
}

/// What a request led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Whether an answer was appended.
    pub answered: bool,
    /// What becomes of the lease.
    pub lease: LeaseChange,
}

impl Outcome {
    const SILENT: Self = Self { answered: false, lease: LeaseChange::None };
}

/// Whether a packet is from a DHCP client to a server.
pub fn is_request(ipv4: &Ipv4) -> bool {
    ipv4.protocol == packet::UDP && ipv4.ports == [DHCP_CLIENT_PORT, DHCP_SERVER_PORT]
}

/// Whether a packet is what only a DHCP server sends.
pub fn is_reply(ipv4: &Ipv4) -> bool {
    ipv4.protocol == packet::UDP && ipv4.ports[0] == DHCP_SERVER_PORT
}

/// What of a request matters.
#[derive(Debug)]
struct Request<'a> {
    kind: DhcpMessageType,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client: Ipv4Addr,
    broadcast: bool,
    /// The message itself: the answer begins with its fixed part and repeats its option 61 (RFC 6842).
    message: DhcpPacket<&'a [u8]>,
}

/// Reads the request in an Ethernet frame that carries UDP to the server's port.
fn read<'a>(frame: &'a [u8], ipv4: &Ipv4, mac: Mac) -> Option<Request<'a>> {
    let end = ETHERNET + usize::from(ipv4.total);
    let udp = frame.get(ipv4.transport()..end)?;
    let length = usize::from(packet::be16(udp, 4));
    let bytes = udp.get(8..length)?;
    let fixed = bytes.first_chunk::<FIXED>()?;
    let message = DhcpPacket::new_checked(bytes).ok()?;
    let ethernet = fixed[1..3] == [1, 6];
    let ours = message.client_hardware_address().0 == mac.0;
    // A relay would stand between us and the guest; there is none.
    let direct = message.relay_agent_ip().is_unspecified();
    let asks = message.opcode() == DhcpOpCode::Request && message.magic_number() == MAGIC;
    if !asks || !ethernet || !ours || !direct {
        return None;
    }
    let mut request = Request {
        kind: DhcpMessageType::Unknown(0),
        requested: None,
        server: None,
        client: message.client_ip(),
        broadcast: fixed[10] & 0x80 != 0,
        message,
    };
    for found in message.options() {
        let address = || found.data.first_chunk::<4>().copied().map(Ipv4Addr::from);
        match (found.kind, found.data) {
            (option::MESSAGE_TYPE, [kind]) => request.kind = (*kind).into(),
            (option::REQUESTED, _) => request.requested = address(),
            (option::SERVER, _) => request.server = address(),
            _ => {}
        }
    }
    Some(request)
}

/// Answers the DHCP request in `frame`, appending a whole Ethernet frame to `out` where there is an answer.
pub fn answer(out: &mut Vec<u8>, frame: &[u8], ipv4: &Ipv4, offer: &Offer<'_>) -> Outcome {
    let Some(request) = read(frame, ipv4, offer.mac) else { return Outcome::SILENT };
    if request.server.is_some_and(|server| server != offer.server) {
        return Outcome::SILENT;
    }
    let wanted = request.requested.unwrap_or(request.client);
    let (kind, lease) = match request.kind {
        DhcpMessageType::Discover => (DhcpMessageType::Offer, LeaseChange::None),
        DhcpMessageType::Request if wanted == offer.address => {
            (DhcpMessageType::Ack, LeaseChange::Given)
        }
        DhcpMessageType::Request => (DhcpMessageType::Nak, LeaseChange::None),
        DhcpMessageType::Inform => (DhcpMessageType::Ack, LeaseChange::None),
        DhcpMessageType::Release | DhcpMessageType::Decline => {
            return Outcome { answered: false, lease: LeaseChange::Ended };
        }
        _ => return Outcome::SILENT,
    };
    let answered = push_answer(out, &request, kind, offer);
    Outcome { answered, lease: if answered { lease } else { LeaseChange::None } }
}

/// Appends the answer as a frame; false when it does not fit, which no configuration that was accepted leads to.
fn push_answer(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    kind: DhcpMessageType,
    offer: &Offer<'_>,
) -> bool {
    let mut message = [0; 576];
    let Some(length) = write_message(&mut message, request, kind, offer) else { return false };
    let inform = request.kind == DhcpMessageType::Inform;
    // RFC 2131, 4.1: to the client's own address if it has one, to all if it asked so, else to the address it gets.
    let (to, mac) = if kind == DhcpMessageType::Nak {
        (Ipv4Addr::BROADCAST, Mac::BROADCAST)
    } else if !request.client.is_unspecified() && (inform || request.client == offer.address) {
        (request.client, offer.mac)
    } else if request.broadcast {
        (Ipv4Addr::BROADCAST, Mac::BROADCAST)
    } else {
        (offer.address, offer.mac)
    };
    push_ethernet(out, mac, offer.server_mac, packet::IPV4);
    push_ipv4(out, packet::UDP, offer.server, to, length + 8);
    push_udp(out, (offer.server, DHCP_SERVER_PORT), (to, DHCP_CLIENT_PORT), &message[..length]);
    true
}

/// Writes the message and gives its length.
fn write_message(
    message: &mut [u8],
    request: &Request<'_>,
    kind: DhcpMessageType,
    offer: &Offer<'_>,
) -> Option<usize> {
    message[..FIXED].copy_from_slice(request.message.into_inner().first_chunk::<FIXED>()?);
    let nak = kind == DhcpMessageType::Nak;
    let inform = request.kind == DhcpMessageType::Inform;
    let mut dhcp = DhcpPacket::new_checked(&mut message[..]).ok()?;
    dhcp.set_opcode(DhcpOpCode::Reply);
    dhcp.set_hops(0);
    dhcp.set_secs(0);
    dhcp.set_client_ip(if nak { Ipv4Addr::UNSPECIFIED } else { request.client });
    dhcp.set_your_ip(if nak || inform { Ipv4Addr::UNSPECIFIED } else { offer.address });
    dhcp.set_server_ip(Ipv4Addr::UNSPECIFIED);
    dhcp.set_sname_and_boot_file_to_zero();

    let mut writer = Options { rest: &mut message[FIXED..], written: 0 };
    writer.put(option::MESSAGE_TYPE, &[kind.into()])?;
    writer.put(option::SERVER, &offer.server.octets())?;
    let id = request.message.options().find(|o| o.kind == option::CLIENT_ID);
    if let Some(id) = id.filter(|id| id.data.len() <= 64) {
        writer.put(option::CLIENT_ID, id.data)?;
    }
    if !nak {
        if !inform {
            writer.put(option::LEASE, &LEASE_SECONDS.to_be_bytes())?;
            writer.put(option::RENEWAL, &(LEASE_SECONDS / 2).to_be_bytes())?;
            writer.put(option::REBINDING, &(LEASE_SECONDS / 8 * 7).to_be_bytes())?;
        }
        write_network(&mut writer, offer)?;
    }
    writer.put_end()?;
    Some((FIXED + writer.written).max(SHORTEST))
}

/// Writes what the guest needs to know of its network.
fn write_network(writer: &mut Options<'_>, offer: &Offer<'_>) -> Option<()> {
    writer.put(option::MASK, &offer.mask.octets())?;
    if let Some(gateway) = offer.gateway {
        writer.put(option::ROUTER, &gateway.octets())?;
    }
    if !offer.dns.is_empty() {
        let mut servers = [0; DNS_LIMIT * 4];
        let dns = &offer.dns[..offer.dns.len().min(DNS_LIMIT)];
        for (to, server) in servers.chunks_exact_mut(4).zip(dns) {
            to.copy_from_slice(&server.octets());
        }
        writer.put(option::DNS, &servers[..dns.len() * 4])?;
    }
    write_domain(writer, offer)?;
    if offer.gateway.is_none() && !offer.services.is_empty() {
        // Destination descriptor of a single host, reached without a router.
        let route = |service: &Ipv4Addr| [&[32], &service.octets()[..], &[0; 4]].concat();
        let routes: Vec<u8> = offer.services.iter().flat_map(route).collect();
        writer.put(option::ROUTES, &routes)?;
    }
    writer.put(option::MTU, &offer.mtu.to_be_bytes())
}

/// Writes the domain twice: as clients know it since ever, and as a list to search, labels with their lengths.
fn write_domain(writer: &mut Options<'_>, offer: &Offer<'_>) -> Option<()> {
    let Some(domain) = offer.domain else { return Some(()) };
    writer.put(option::DOMAIN, domain.as_bytes())?;
    let mut search = Vec::with_capacity(domain.len() + 2);
    for label in domain.split('.') {
        search.push(u8::try_from(label.len()).ok()?);
        search.extend_from_slice(label.as_bytes());
    }
    search.push(0);
    writer.put(option::SEARCH, &search)
}

/// Writes options one behind the other and knows how many bytes they took.
struct Options<'a> {
    rest: &'a mut [u8],
    written: usize,
}

impl Options<'_> {
    fn put(&mut self, kind: u8, data: &[u8]) -> Option<()> {
        let length = data.len() + 2;
        let room = self.rest.get_mut(self.written..self.written + length)?;
        DhcpOptionWriter::new(room).emit(DhcpOption { kind, data }).ok()?;
        self.written += length;
        Some(())
    }

    fn put_end(&mut self) -> Option<()> {
        *self.rest.get_mut(self.written)? = option::END;
        self.written += 1;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Payload, checksum::transport_is_right, parse};
    use etherparse::PacketBuilder;
    use proptest::prelude::*;
    use smoltcp::wire::{DhcpRepr, EthernetAddress};

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const DNS: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 2, 136), Ipv4Addr::new(100, 100, 2, 138)];

    fn offer() -> Offer<'static> {
        Offer {
            mac: MAC,
            address: OURS,
            mask: [255, 255, 255, 0].into(),
            gateway: Some(SERVER),
            dns: &DNS,
            domain: Some("lab.internal"),
            services: &DNS,
            mtu: 1450,
            server: SERVER,
            server_mac: crate::address::GATEWAY_MAC,
        }
    }

    fn client(kind: DhcpMessageType) -> DhcpRepr<'static> {
        DhcpRepr {
            message_type: kind,
            transaction_id: 0x1234_5678,
            secs: 3,
            client_hardware_address: EthernetAddress(MAC.0),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: Some(EthernetAddress(MAC.0)),
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }

    fn wrap(message: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(MAC.0, [0xff; 6])
            .ipv4([0; 4], [255; 4], 64)
            .udp(68, 67)
            .write(&mut frame, message)
            .unwrap();
        frame
    }

    fn encode(client: &DhcpRepr<'_>) -> Vec<u8> {
        let mut message = vec![0; client.buffer_len()];
        client.emit(&mut DhcpPacket::new_unchecked(&mut message[..])).unwrap();
        wrap(&message)
    }

    fn ask_bytes(frame: &[u8]) -> (Outcome, Vec<u8>) {
        let Payload::Ipv4(ipv4) = parse(frame, frame.len()).unwrap().payload else { panic!() };
        let mut out = Vec::new();
        (answer(&mut out, frame, &ipv4, &offer()), out)
    }

    /// Asks, checks the answer's headers, and gives its message.
    fn ask(client: &DhcpRepr<'_>) -> (LeaseChange, Option<(Vec<u8>, Ipv4Addr)>) {
        let (outcome, out) = ask_bytes(&encode(client));
        assert_eq!(outcome.answered, !out.is_empty());
        if out.is_empty() {
            return (outcome.lease, None);
        }
        let Payload::Ipv4(ipv4) = parse(&out, out.len()).unwrap().payload else { panic!() };
        assert_eq!(ipv4.ports, [67, 68]);
        assert!(transport_is_right(&out, &ipv4));
        assert_eq!(Mac::read(&out[6..]), crate::address::GATEWAY_MAC);
        (outcome.lease, Some((out[42..].to_vec(), ipv4.destination)))
    }

    fn option(message: &[u8], kind: u8) -> Option<Vec<u8>> {
        let packet = DhcpPacket::new_checked(message).unwrap();
        packet.options().find(|o| o.kind == kind).map(|o| o.data.to_vec())
    }

    #[test]
    fn a_guest_gets_its_address_and_is_told_its_network() {
        let (lease, answer) = ask(&client(DhcpMessageType::Discover));
        let (message, to) = answer.unwrap();
        assert_eq!((lease, to), (LeaseChange::None, OURS));
        let packet = DhcpPacket::new_checked(&message[..]).unwrap();
        let repr = DhcpRepr::parse(&packet).unwrap();
        assert_eq!(repr.message_type, DhcpMessageType::Offer);
        assert_eq!((repr.your_ip, repr.transaction_id), (OURS, 0x1234_5678));
        assert_eq!(repr.router, Some(SERVER));
        assert_eq!(repr.subnet_mask, Some([255, 255, 255, 0].into()));
        assert_eq!(repr.dns_servers.unwrap()[..], DNS);
        assert_eq!(repr.lease_duration, Some(LEASE_SECONDS));
        assert_eq!(option(&message, 26), Some(vec![5, 170]));
        assert_eq!(option(&message, 15).unwrap(), b"lab.internal");
        assert_eq!(option(&message, 119).unwrap(), b"\x03lab\x08internal\0");
        assert_eq!(option(&message, 121), None);
        assert_eq!(option(&message, 61).unwrap()[1..], MAC.0);

        let mut request = client(DhcpMessageType::Request);
        request.requested_ip = Some(OURS);
        request.server_identifier = Some(SERVER);
        let (lease, answer) = ask(&request);
        let message = answer.unwrap().0;
        assert_eq!(lease, LeaseChange::Given);
        assert_eq!(option(&message, 53), Some(vec![5]));
    }

    #[test]
    fn without_gateway_there_is_a_route_to_each_of_the_card_s_services() {
        let offer = Offer { gateway: None, dns: &[SERVER; 9], ..offer() };
        let frame = encode(&client(DhcpMessageType::Discover));
        let Payload::Ipv4(ipv4) = parse(&frame, frame.len()).unwrap().payload else { panic!() };
        let mut out = Vec::new();
        assert!(answer(&mut out, &frame, &ipv4, &offer).answered);
        let routes = [32, 100, 100, 2, 136, 0, 0, 0, 0, 32, 100, 100, 2, 138, 0, 0, 0, 0];
        assert_eq!(option(&out[42..], 121), Some(routes.to_vec()));
        assert_eq!(option(&out[42..], 3), None);
    }

    #[test]
    fn a_renewal_is_answered_to_the_client_and_a_wish_for_another_address_refused_to_all() {
        let mut renew = client(DhcpMessageType::Request);
        renew.client_ip = OURS;
        let (lease, answer) = ask(&renew);
        assert_eq!((lease, answer.unwrap().1), (LeaseChange::Given, OURS));
        let mut other = client(DhcpMessageType::Request);
        other.requested_ip = Some([10, 0, 0, 8].into());
        let (lease, answer) = ask(&other);
        let (message, to) = answer.unwrap();
        assert_eq!((lease, to), (LeaseChange::None, Ipv4Addr::BROADCAST));
        assert_eq!(option(&message, 53), Some(vec![6]));
        assert_eq!(option(&message, 51), None);
        assert_eq!(message[16..20], [0; 4]);
    }

    #[test]
    fn inform_tells_the_network_and_no_lease() {
        let mut inform = client(DhcpMessageType::Inform);
        inform.client_ip = [10, 0, 0, 99].into();
        let (lease, answer) = ask(&inform);
        let (message, to) = answer.unwrap();
        assert_eq!((lease, to), (LeaseChange::None, [10, 0, 0, 99].into()));
        assert_eq!(option(&message, 51), None);
        assert!(option(&message, 26).is_some());
        assert_eq!(message[16..20], [0; 4]);
    }

    #[test]
    fn release_ends_the_lease_in_silence() {
        let mut release = client(DhcpMessageType::Release);
        release.server_identifier = Some(SERVER);
        assert_eq!(ask(&release), (LeaseChange::Ended, None));
    }

    #[test]
    fn others_get_no_answer() {
        let mut other_server = client(DhcpMessageType::Request);
        other_server.requested_ip = Some(OURS);
        other_server.server_identifier = Some([10, 0, 0, 2].into());
        assert_eq!(ask(&other_server), (LeaseChange::None, None));
        let mut other_mac = client(DhcpMessageType::Discover);
        other_mac.client_hardware_address = EthernetAddress([2, 0, 0, 0, 0, 9]);
        assert_eq!(ask(&other_mac), (LeaseChange::None, None));
        let mut relayed = client(DhcpMessageType::Discover);
        relayed.relay_agent_ip = [10, 0, 0, 3].into();
        assert_eq!(ask(&relayed), (LeaseChange::None, None));
    }

    #[test]
    fn a_client_without_an_address_yet_may_ask_for_broadcast() {
        let mut discover = client(DhcpMessageType::Discover);
        discover.broadcast = true;
        assert_eq!(ask(&discover).1.unwrap().1, Ipv4Addr::BROADCAST);
    }

    proptest! {
        #[test]
        fn any_bytes_lead_to_an_answer_or_none(
            kind in 0u8..10,
            damage in prop::collection::vec((0usize..330, any::<u8>()), 0..12),
            cut in 0usize..330,
        ) {
            let mut request = client(kind.into());
            request.requested_ip = Some(OURS);
            let whole = encode(&request);
            let mut message = whole[42..].to_vec();
            for (at, value) in damage {
                if let Some(byte) = message.get_mut(at) {
                    *byte = value;
                }
            }
            message.truncate(cut.max(1));
            let (outcome, out) = ask_bytes(&wrap(&message));
            prop_assert_eq!(outcome.answered, !out.is_empty());
            if !out.is_empty() {
                parse(&out, out.len()).unwrap();
            }
        }
    }
}
