//! Answers as tables for people.

use bixi_api::network::{
    HttpTokens, MetadataDescription, NetworkDescription, PortDescription, PortLimits,
    SegmentConfig, SegmentDescription, UnderlayStatistics,
};
use std::fmt::Write;

/// Rows under their headings, each column as wide as its widest cell.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
    let mut widths = [0; N];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in all {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names and values, one per line.
fn lines(pairs: &[(&str, String)]) -> String {
    pairs.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<22}{value}");
        text
    })
}

fn joined<T: ToString>(list: &[T]) -> String {
    let list: Vec<_> = list.iter().map(ToString::to_string).collect();
    if list.is_empty() { "-".to_owned() } else { list.join(",") }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn state(port: &PortDescription) -> &'static str {
    match port {
        PortDescription { connected: true, .. } => "connected",
        PortDescription { last_fault: Some(_), .. } => "fault",
        _ => "waiting",
    }
}

pub(super) fn ports(ports: &[PortDescription]) -> String {
    let head = ["ID", "SEGMENT", "MAC", "IPV4", "EPOCH", "STATE", "SOCKET"];
    table(
        head,
        ports.iter().map(|port| {
            let add = &port.port;
            [
                port.id.clone(),
                add.segment.to_string(),
                add.mac.clone(),
                joined(&add.ipv4),
                add.epoch.to_string(),
                state(port).to_owned(),
                add.socket.display().to_string(),
            ]
        }),
    )
}

pub(super) fn port(port: &PortDescription) -> String {
    let (add, seen) = (&port.port, &port.statistics);
    let mut text = lines(&[
        ("id", port.id.clone()),
        ("state", state(port).to_owned()),
        ("segment", add.segment.to_string()),
        ("mac", add.mac.clone()),
        ("ipv4", joined(&add.ipv4)),
        ("epoch", add.epoch.to_string()),
        ("socket", add.socket.display().to_string()),
        ("queue pairs", add.queue_pairs.to_string()),
        ("sealed memory", if add.require_sealed { "required" } else { "not required" }.to_owned()),
        ("limits", limits(&add.limits)),
        ("lease until", or_dash(port.lease_until)),
        ("metadata", or_dash(port.metadata.map(|generation| format!("generation {generation}")))),
        ("last fault", or_dash(port.last_fault.as_ref())),
    ]);
    text.push_str(&lines(&[
        ("received", format!("{} ({} bytes)", seen.received, seen.received_bytes)),
        ("sent", format!("{} ({} bytes)", seen.sent, seen.sent_bytes)),
        ("answered", seen.answered.to_string()),
        ("no buffer", seen.no_buffer.to_string()),
        ("spoofed", seen.spoofed.to_string()),
        ("unknown destination", seen.unknown_destination.to_string()),
        ("malformed", seen.malformed.to_string()),
        ("multicast", seen.multicast.to_string()),
        ("ipv6", seen.ipv6.to_string()),
        ("other protocol", seen.other_protocol.to_string()),
        ("too big", seen.too_big.to_string()),
        ("underlay failed", seen.underlay_failed.to_string()),
        ("limited", seen.limited.to_string()),
        ("receive limited", seen.receive_limited.to_string()),
        ("transmit limited", seen.transmit_limited.to_string()),
        ("flows", seen.flows.to_string()),
        ("evicted flows", seen.evicted_flows.to_string()),
        ("torn records", seen.torn_records.to_string()),
    ]));
    text
}

fn limits(limits: &PortLimits) -> String {
    let packets = limits.packets_per_second.map(|n| format!("{n} packets/s"));
    let bits = limits.bits_per_second.map(|n| format!("{n} bit/s"));
    joined(&packets.into_iter().chain(bits).collect::<Vec<_>>())
}

pub(super) fn metadata(metadata: &MetadataDescription) -> String {
    let tokens = match metadata.http_tokens {
        HttpTokens::Optional => "optional",
        HttpTokens::Required => "required",
    };
    lines(&[
        ("generation", metadata.generation.to_string()),
        ("tokens", tokens.to_owned()),
        ("documents", format!("{} ({} bytes)", metadata.documents, metadata.bytes)),
    ])
}

pub(super) fn segments(segments: &[SegmentDescription]) -> String {
    let head = ["VNI", "GENERATION", "NETWORK", "GATEWAY", "MTU", "PEERS"];
    table(
        head,
        segments.iter().map(|SegmentDescription { vni, config }| {
            [
                vni.to_string(),
                config.generation.to_string(),
                format!("{}/{}", config.network, config.prefix_len),
                or_dash(config.gateway),
                config.mtu.to_string(),
                config.peers.len().to_string(),
            ]
        }),
    )
}

pub(super) fn segment(SegmentDescription { vni, config }: &SegmentDescription) -> String {
    let SegmentConfig { generation, network, prefix_len, gateway, dns, mtu, peers, names } = config;
    let mut text = lines(&[
        ("vni", vni.to_string()),
        ("generation", generation.to_string()),
        ("network", format!("{network}/{prefix_len}")),
        ("gateway", or_dash(*gateway)),
        ("dns", joined(dns)),
        ("mtu", mtu.to_string()),
        ("domain", or_dash(names.as_ref().and_then(|names| names.domain.as_ref()))),
        ("names at", joined(names.as_ref().map_or(&[][..], |names| &names.servers))),
    ]);
    let rows = peers
        .iter()
        .map(|peer| [peer.mac.clone(), peer.ipv4.to_string(), peer.endpoint.to_string()]);
    text.push_str(&table(["MAC", "IPV4", "ENDPOINT"], rows));
    let hosts = names.iter().flat_map(|names| &names.hosts);
    let rows = hosts.map(|host| [host.name.clone(), host.ipv4.to_string()]);
    text.push_str(&table(["NAME", "IPV4"], rows));
    text
}

pub(super) fn status(network: &NetworkDescription) -> String {
    let mut text = lines(&[
        ("release", network.release.clone()),
        ("pid", network.pid.to_string()),
        ("underlay", or_dash(network.underlay)),
        ("ports", network.ports.to_string()),
        ("segments", network.segments.to_string()),
    ]);
    if let Some(seen) = &network.underlay_statistics {
        text.push_str(&underlay(seen));
    }
    text
}

fn underlay(seen: &UnderlayStatistics) -> String {
    lines(&[
        ("received", format!("{} ({} bytes)", seen.received, seen.received_bytes)),
        ("sent", format!("{} ({} bytes)", seen.sent, seen.sent_bytes)),
        ("send failed", seen.send_failed.to_string()),
        ("malformed", seen.malformed.to_string()),
        ("unknown segment", seen.unknown_segment.to_string()),
        ("unknown server", seen.unknown_server.to_string()),
        ("unknown destination", seen.unknown_destination.to_string()),
        ("not carried", seen.not_carried.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a".to_owned(), "bbb".to_owned()], ["cccc".to_owned(), String::new()]];
        assert_eq!(table(["X", "Y"], rows.into_iter()), "X     Y\na     bbb\ncccc\n");
    }
}
