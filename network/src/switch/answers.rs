//! The card's own answers to a guest, and what it must know to give them.
//!
//! Invariant: an answer goes to the port that asked. Each counts: answered, or why it was not.

use super::counters::Tally;
use super::frame::SPARE;
use super::ports::Port;
use crate::address::GATEWAY_MAC;
use crate::answer::{arp, dhcp, dns, icmp};
use crate::engine::action::{Answer, Reason};
use crate::engine::names::Names;
use crate::engine::view::mask;
use crate::metadata::ADDRESSES;
use crate::packet::{Frame, Payload};
use crate::tables::lease::seconds_now;

/// Writes the answer to the guest's frame behind [`SPARE`] bytes into `out`. False when there is none.
pub fn answer(
    port: &Port,
    what: Answer,
    frame: &[u8],
    parsed: &Frame,
    out: &mut Vec<u8>,
    tally: &mut Tally,
) -> bool {
    out.clear();
    out.resize(SPARE, 0);
    let outcome = match what {
        Answer::Arp => answer_arp(port, frame, out),
        Answer::Dhcp => answer_dhcp(port, frame, parsed, out),
        Answer::Dns => answer_dns(port, frame, parsed, out),
        // It keeps connections, and has its own way back to the guest.
        Answer::Metadata => Err(Reason::UnknownDestination),
    };
    match outcome {
        Ok(()) => tally.answered += 1,
        Err(reason) => tally.drop(reason),
    }
    outcome.is_ok()
}

fn answer_arp(port: &Port, frame: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
    let asked = arp::read(frame).ok_or(Reason::Malformed)?;
    let own = |address| port.view.ipv4.contains(&address);
    let probe = asked.sender_address.is_unspecified();
    if asked.sender != port.view.mac || !(probe || own(asked.sender_address)) {
        return Err(Reason::Spoofed);
    }
    // An announcement, or the question whether somebody else has the guest's own address: nobody needs to hear it.
    if !asked.request || own(asked.target_address) {
        return Err(Reason::Multicast);
    }
    let segment = &port.segment;
    let host = segment.host(asked.target_address).map(|host| host.mac);
    let own_service = asked.target_address == segment.server()
        || segment.names_at(asked.target_address).is_some()
        || (port.metadata.is_some() && ADDRESSES.contains(&asked.target_address));
    let card = own_service.then_some(GATEWAY_MAC);
    let owner = host.or(card).ok_or(Reason::UnknownDestination)?;
    arp::reply(out, &asked, owner);
    Ok(())
}

fn answer_dhcp(port: &Port, frame: &[u8], parsed: &Frame, out: &mut Vec<u8>) -> Result<(), Reason> {
    let Payload::Ipv4(ipv4) = &parsed.payload else { return Err(Reason::Malformed) };
    let segment = &port.segment;
    let (Some(network), Some(address)) = (&segment.network, port.view.ipv4.first()) else {
        return Err(Reason::UnknownDestination);
    };
    let names = network.names.as_deref();
    let servers = names.map(Names::servers).unwrap_or_default();
    let metadata = if port.metadata.is_some() { &ADDRESSES[..] } else { &[] };
    let offer = dhcp::Offer {
        mac: port.view.mac,
        address: *address,
        mask: mask(network.prefix_len),
        gateway: network.gateway,
        dns: if network.dns.is_empty() { servers } else { &network.dns },
        domain: names.and_then(Names::domain),
        services: &[servers, metadata].concat(),
        mtu: segment.mtu,
        server: segment.server(),
        server_mac: GATEWAY_MAC,
    };
    let outcome = dhcp::answer(out, frame, ipv4, &offer);
    match outcome.lease {
        dhcp::LeaseChange::None => {}
        dhcp::LeaseChange::Given => {
            port.leases.give(*address, port.view.mac, seconds_now(), dhcp::LEASE_SECONDS);
        }
        dhcp::LeaseChange::Ended => port.leases.end(*address),
    }
    if outcome.answered { Ok(()) } else { Err(Reason::UnknownDestination) }
}

fn answer_dns(port: &Port, frame: &[u8], parsed: &Frame, out: &mut Vec<u8>) -> Result<(), Reason> {
    let Payload::Ipv4(ipv4) = &parsed.payload else { return Err(Reason::Malformed) };
    let names = port.segment.names_at(ipv4.destination).ok_or(Reason::UnknownDestination)?;
    let answered = dns::answer(out, frame, parsed, ipv4, names);
    if answered { Ok(()) } else { Err(Reason::Malformed) }
}

/// Writes *fragmentation needed* behind [`SPARE`] bytes into `out`, where the guest forbade to cut the packet.
pub fn too_big(port: &Port, frame: &[u8], parsed: &Frame, out: &mut Vec<u8>) -> bool {
    out.clear();
    out.resize(SPARE, 0);
    let Payload::Ipv4(ipv4) = &parsed.payload else { return false };
    let (mtu, router) = (port.segment.mtu, port.segment.server());
    ipv4.dont_fragment && icmp::too_big(out, frame, parsed, ipv4, mtu, router)
}
