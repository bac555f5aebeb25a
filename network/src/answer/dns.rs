//! DNS (RFC 1035): the card is the server for the names of its own segment, and for nothing else.
//!
//! | asked for | answer |
//! |---|---|
//! | A of a known name, with the domain or without | its addresses |
//! | PTR of a known address | its name, in the domain if there is one |
//! | any other type of a known name (AAAA: a segment has no IPv6) | no data |
//! | a name in the domain, of one label, or an address of the network that nobody has | no such name |
//! | anything else | refused: the guest's resolver asks its next server |
//!
//! Invariants: [`respond`] is a pure function of the question and of what the card was told; any bytes give a response or
//! none, never a panic; a response fits 512 bytes, so that none is ever cut and nobody needs to come back by TCP. What a
//! message claims to hold is bounded before it is parsed.

use super::{push_ethernet, push_ipv4, push_udp};
use crate::address::GATEWAY_MAC;
use crate::engine::names::{Known, Names};
use crate::packet::{self, ETHERNET, Frame, Ipv4, be16};
use simple_dns::rdata::{A, OPT, PTR, RData, SOA};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question};
use simple_dns::{RCODE, ResourceRecord, TYPE};
use std::net::Ipv4Addr;

/// The port of DNS servers.
const PORT: u16 = 53;
/// Bytes of a message's header.
const HEADER: usize = 12;
/// The longest question that is read: no resolver's is longer.
const LONGEST: usize = 1232;
/// Records that a question may bring along: EDNS, and signatures, which are not looked at.
const RECORD_LIMIT: u16 = 4;
/// How long an answer may be kept, in seconds: an address may change its name with any change of the segment.
const TTL: u32 = 10;
/// How long a name may be taken for missing, in seconds: an instance may be about to start.
const NEGATIVE_TTL: u32 = 5;

/// Whether a packet is from a guest to a DNS server.
pub fn is_request(ipv4: &Ipv4) -> bool {
    ipv4.protocol == packet::UDP && ipv4.ports[1] == PORT
}

/// Answers the question in `frame`, appending a whole Ethernet frame to `out`; false, and nothing appended, if it is none.
pub fn answer(out: &mut Vec<u8>, frame: &[u8], parsed: &Frame, ipv4: &Ipv4, names: &Names) -> bool {
    let end = ETHERNET + usize::from(ipv4.total);
    let Some(udp) = frame.get(ipv4.transport()..end) else { return false };
    let Some(message) = udp.get(8..usize::from(be16(udp, 4))) else { return false };
    let Some(response) = respond(message, names) else { return false };
    push_ethernet(out, parsed.source, GATEWAY_MAC, packet::IPV4);
    push_ipv4(out, packet::UDP, ipv4.destination, ipv4.source, response.len() + 8);
    push_udp(out, (ipv4.destination, PORT), (ipv4.source, ipv4.ports[0]), &response);
    true
}

/// The response to a message; none to what is no question at all.
pub fn respond(message: &[u8], names: &Names) -> Option<Vec<u8>> {
    let is_response = message.get(2)? & 0x80 != 0;
    if is_response || message.len() < HEADER || message.len() > LONGEST {
        return None;
    }
    let [questions, answers, authorities, additional] = [4, 6, 8, 10].map(|at| be16(message, at));
    let id = be16(message, 0);
    let operation = message[2] >> 3 & 15;
    if operation != 0 {
        return refusal(id, RCODE::NotImplemented).build_bytes_vec().ok();
    }
    let plain = questions == 1 && answers == 0 && authorities == 0 && additional <= RECORD_LIMIT;
    let Some(asked) = plain.then(|| Packet::parse(message).ok()).flatten() else {
        return refusal(id, RCODE::FormatError).build_bytes_vec().ok();
    };
    let [question] = &asked.questions[..] else { return None };
    let text = plain_text(&question.qname);
    let mut response = refusal(id, RCODE::NoError);
    response.questions.push(question.clone());
    if asked.has_flags(PacketFlag::RECURSION_DESIRED) {
        response.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    if let Some(edns) = asked.opt() {
        let known = edns.version == 0;
        *response.opt_mut() =
            Some(OPT { opt_codes: Vec::new(), udp_packet_size: LONGEST as u16, version: 0 });
        if !known {
            *response.rcode_mut() = RCODE::BADVERS;
            return response.build_bytes_vec_compressed().ok();
        }
    }
    fill(&mut response, question, text.as_deref(), names);
    response.build_bytes_vec_compressed().ok()
}

/// A response without a question.
fn refusal(id: u16, code: RCODE) -> Packet<'static> {
    let mut response = Packet::new_reply(id);
    *response.opcode_mut() = OPCODE::StandardQuery;
    *response.rcode_mut() = code;
    response
}

/// A name in lower case with dots between its labels; none if a label is no host's, so that a dot in it is not mistaken.
fn plain_text(name: &Name<'_>) -> Option<String> {
    let mut text = String::new();
    for label in name.as_bytes() {
        if label.iter().any(|byte| !byte.is_ascii_graphic() || *byte == b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
    }
    Some(text)
}

/// Fills in what is known about the question.
fn fill<'a>(
    response: &mut Packet<'a>,
    question: &Question<'a>,
    name: Option<&str>,
    names: &'a Names,
) {
    let ours = matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
    let name = name.filter(|name| ours && !name.is_empty());
    let mut code = RCODE::NoError;
    let record = |data| ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data);
    let asks = |kind| question.qtype == QTYPE::ANY || question.qtype == QTYPE::TYPE(kind);
    let reverse = name.and_then(|name| name.strip_suffix(".in-addr.arpa"));
    match (name, reverse) {
        (_, Some(reverse)) => match reversed(reverse).map_or(Known::NotOurs, |a| names.name(a)) {
            Known::Yes(name) if asks(TYPE::PTR) => {
                let owned = full_name(name, names);
                response.answers.extend(owned.map(|name| record(RData::PTR(PTR(name)))));
            }
            Known::Yes(_) => {}
            Known::Nobody => code = RCODE::NameError,
            Known::NotOurs => code = RCODE::Refused,
        },
        (Some(name), None) => match names.addresses(name) {
            Known::Yes(addresses) if asks(TYPE::A) => {
                let data = addresses.iter().map(|address| RData::A(A::from(*address)));
                response.answers.extend(data.map(record));
            }
            Known::Yes(_) => {}
            Known::Nobody => code = RCODE::NameError,
            Known::NotOurs => code = RCODE::Refused,
        },
        (None, None) => code = RCODE::Refused,
    }
    *response.rcode_mut() = code;
    if code == RCODE::Refused {
        return;
    }
    response.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    // A resolver keeps a denial only when told for how long (RFC 2308), and only the owner of a zone can tell.
    let zone = names.domain().filter(|_| name.is_some_and(|name| names.in_domain(name)));
    let zone = zone.and_then(|domain| Name::new(domain).ok());
    if let Some(zone) = zone.filter(|_| response.answers.is_empty()) {
        let start = start_of_authority(zone.clone());
        response.name_servers.push(ResourceRecord::new(zone, CLASS::IN, NEGATIVE_TTL, start));
    }
}

fn full_name(name: &str, names: &Names) -> Option<Name<'static>> {
    let full = match names.domain() {
        Some(domain) => format!("{name}.{domain}"),
        None => name.to_owned(),
    };
    Name::new(&full).ok().map(Name::into_owned)
}

fn start_of_authority(zone: Name<'_>) -> RData<'_> {
    RData::SOA(SOA {
        mname: zone.clone(),
        rname: zone,
        serial: 1,
        refresh: 3600,
        retry: 600,
        expire: 86_400,
        minimum: NEGATIVE_TTL,
    })
}

/// The address that the labels before `in-addr.arpa` stand for (RFC 1035, 3.5).
fn reversed(text: &str) -> Option<Ipv4Addr> {
    let address: Ipv4Addr = text.parse().ok()?;
    let [a, b, c, d] = address.octets();
    Some(Ipv4Addr::new(d, c, b, a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names() -> Names {
        let address = |n| Ipv4Addr::new(10, 0, 0, n);
        let mut names = Names::new(vec![], Some("lab.internal"), address(0), 24);
        for n in 1..=16 {
            names.add("Web", address(n));
        }
        names.add("db", address(77));
        names
    }

    fn query(name: &str, kind: TYPE) -> Packet<'_> {
        let mut query = Packet::new_query(0x1234);
        let qname = Name::new_unchecked(name);
        query.questions.push(Question::new(qname, kind.into(), CLASS::IN.into(), false));
        query.set_flags(PacketFlag::RECURSION_DESIRED);
        query
    }

    fn ask_bytes(bytes: &[u8]) -> Option<Vec<u8>> {
        let response = respond(bytes, &names())?;
        assert!(response.len() <= 512, "{} bytes", response.len());
        Some(response)
    }

    fn ask(query: &Packet<'_>) -> Packet<'static> {
        let bytes = ask_bytes(&query.build_bytes_vec().unwrap()).unwrap();
        let response = Packet::parse(bytes.leak()).unwrap();
        assert!(response.has_flags(PacketFlag::RESPONSE));
        assert_eq!(response.id(), 0x1234);
        response
    }

    fn addresses(response: &Packet<'_>) -> Vec<Ipv4Addr> {
        let address = |record: &ResourceRecord<'_>| match &record.rdata {
            RData::A(a) => Ipv4Addr::from(a.address),
            other => panic!("{other:?}"),
        };
        response.answers.iter().map(address).collect()
    }

    #[test]
    fn a_known_name_has_its_addresses_in_any_spelling() {
        for name in ["db", "DB", "db.lab.internal", "dB.LAB.internal."] {
            let response = ask(&query(name, TYPE::A));
            assert_eq!(response.rcode(), RCODE::NoError);
            assert_eq!(addresses(&response), [Ipv4Addr::new(10, 0, 0, 77)], "{name}");
            assert_eq!(response.questions[0].qname.to_string(), name.trim_end_matches('.'));
            assert!(
                response
                    .has_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_DESIRED)
            );
            assert!(!response.has_flags(PacketFlag::RECURSION_AVAILABLE));
        }
        assert_eq!(addresses(&ask(&query("web.lab.internal", TYPE::A))).len(), 16);
    }

    #[test]
    fn a_known_address_has_its_name() {
        let response = ask(&query("77.0.0.10.in-addr.arpa", TYPE::PTR));
        let RData::PTR(PTR(name)) = &response.answers[0].rdata else { panic!("{response:?}") };
        assert_eq!(name.to_string(), "db.lab.internal");
        for (name, code) in [
            ("78.0.0.10.in-addr.arpa", RCODE::NameError),
            ("77.0.1.10.in-addr.arpa", RCODE::Refused),
            ("0.0.10.in-addr.arpa", RCODE::Refused),
            ("x.0.0.10.in-addr.arpa", RCODE::Refused),
        ] {
            assert_eq!(ask(&query(name, TYPE::PTR)).rcode(), code, "{name}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_so_and_what_is_not_ours_refused() {
        for (name, kind, code, told_for_how_long) in [
            ("db.lab.internal", TYPE::AAAA, RCODE::NoError, true),
            ("db", TYPE::AAAA, RCODE::NoError, false),
            ("lab.internal", TYPE::A, RCODE::NoError, true),
            ("77.0.0.10.in-addr.arpa", TYPE::A, RCODE::NoError, false),
            ("x.lab.internal", TYPE::A, RCODE::NameError, true),
            ("x", TYPE::A, RCODE::NameError, false),
            ("example.com", TYPE::A, RCODE::Refused, false),
            ("", TYPE::NS, RCODE::Refused, false),
            ("a b", TYPE::A, RCODE::Refused, false),
        ] {
            let response = ask(&query(name, kind));
            assert_eq!(response.rcode(), code, "{name} {kind:?}");
            assert!(response.answers.is_empty());
            assert_eq!(!response.name_servers.is_empty(), told_for_how_long, "{name} {kind:?}");
        }
        let mut chaos = query("db", TYPE::A);
        chaos.questions[0].qclass = CLASS::CH.into();
        assert_eq!(ask(&chaos).rcode(), RCODE::Refused);
    }

    #[test]
    fn edns_is_spoken_and_a_later_version_refused() {
        let edns = |version| OPT { opt_codes: vec![], udp_packet_size: 4096, version };
        let mut asked = query("web.lab.internal", TYPE::A);
        *asked.opt_mut() = Some(edns(0));
        let response = ask(&asked);
        assert_eq!((response.opt().map(|opt| opt.version), response.answers.len()), (Some(0), 16));
        *asked.opt_mut() = Some(edns(1));
        assert_eq!(ask(&asked).rcode(), RCODE::BADVERS);
    }

    #[test]
    fn what_is_no_question_is_refused_or_left_alone() {
        let good = query("db", TYPE::A).build_bytes_vec().unwrap();
        let code = |bytes: &[u8]| ask_bytes(bytes).map(|bytes| bytes[3] & 15);
        assert_eq!(code(&good), Some(0));
        let with = |at: usize, value| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        // A response; an update; two questions; 65,280 records that are not there; an endless name.
        assert_eq!(code(&with(2, 0x80)), None);
        assert_eq!(code(&with(2, 5 << 3)), Some(4));
        assert_eq!(code(&with(5, 2)), Some(1));
        assert_eq!(code(&with(10, 0xff)), Some(1));
        assert_eq!(code(&[&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat()), Some(1));
        assert_eq!(code(&good[..11]), None);
        assert_eq!(code(&[&good[..], &[0; LONGEST]].concat()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_lead_to_a_response_or_none(
            damage in prop::collection::vec((0usize..60, any::<u8>()), 0..12),
            cut in 0usize..60,
            tail in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = query("web.lab.internal", TYPE::A).build_bytes_vec().unwrap();
            bytes.truncate(cut.max(2));
            bytes.extend(tail);
            for (at, value) in damage {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            if let Some(response) = ask_bytes(&bytes) {
                let response = Packet::parse(&response).unwrap();
                prop_assert!(response.has_flags(PacketFlag::RESPONSE));
            }
        }

        #[test]
        fn no_name_makes_a_response_too_long(
            labels in prop::collection::vec("[a-z]{1,63}", 1..5), inside: bool, reverse: bool,
        ) {
            let mut name = labels.join(".");
            name.truncate(if inside { 240 } else { 250 });
            if inside {
                name.push_str(".lab.internal");
            }
            let kind = if reverse { TYPE::PTR } else { TYPE::A };
            ask(&query(&name, kind));
        }
    }
}
