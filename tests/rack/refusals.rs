//! Bad input: a clear error, an exit code, and nothing half made.

use crate::bed::Check;
use bixi_api::network::PortAdd;
use bixi_api::storage::DiskAttach;
use bixi_lab::{Rack, Server};
use bixi_tests::{Card, Failure, Guest, GuestPlan, Kernel, Lease, Pair, Result, SEGMENT, check};
use serde_json::{Value, json};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "a_bad_configuration_is_refused", slow: false, run: configurations },
    Check { name: "without_kvm_it_says_so", slow: false, run: no_kvm },
    Check { name: "a_disk_in_use_and_a_port_twice", slow: false, run: in_use },
];

const LIMIT: Duration = Duration::from_secs(60);

/// Runs `bixi-vmm` on a configuration that must be refused with a message that contains `expected`.
fn refused(server: &Server, config: &Value, expected: &str) -> Result<()> {
    let text = serde_json::to_vec(config)?;
    server.put(&text, "/run/bixi/vm/bad/vm.json", 0o600)?;
    let output = server
        .command("bixi-vmm")
        .args(["--config", "/run/bixi/vm/bad/vm.json"])
        .limit(Duration::from_secs(30))
        .run()?;
    let said = output.error_text();
    let code = output.ended.code;
    check!(code.is_some_and(|c| c != 0 && c != 101), "{config}: {}", output.describe());
    check!(said.to_lowercase().contains(&expected.to_lowercase()), "{expected:?} expected: {said}");
    check!(!said.contains("panicked"), "{said}");
    let left = server.sh("ls /run/bixi/vm/bad; pidof bixi-vmm || true")?;
    check!(left.trim() == "vm.json", "something is left: {left}");
    Ok(())
}

fn configurations(rack: &Rack) -> Result<()> {
    let server = rack.server(1);
    let good = serde_json::to_value(GuestPlan::new("bad", Kernel::BzImage).config)?;
    let with = |path: &str, value: Value| {
        let mut config = good.clone();
        if let Some(place) = config.pointer_mut(path) {
            *place = value;
        } else if let Some(object) = config.as_object_mut() {
            object.insert(path.trim_start_matches('/').to_owned(), value);
        }
        config
    };
    for (config, expected) in [
        (with("/colour", json!(1)), "unknown field `colour`"),
        (with("/boot/kernel", json!({"path": "/no/such/kernel"})), "/no/such/kernel"),
        (with("/boot/initrd", json!({"path": "/no/such/initrd"})), "/no/such/initrd"),
        (with("/boot/kernel", json!({"path": "/etc/passwd"})), "/etc/passwd"),
        (with("/memory/size", json!(1_u64 << 44)), "memory"),
        (with("/memory/size", json!(12345)), "memory"),
        (with("/memory/pages", json!("2m")), "huge"),
        (with("/cpus/count", json!(0)), "cpu"),
        (with("/board", json!("q35")), "i440fx-1"),
        (with("/id", json!("no/slash")), "id"),
        (with("/console", json!({"file": {"path": "/no/folder/console"}})), "/no/folder/console"),
        (with("/control", json!({"path": "/no/folder/control.sock"})), "/no/folder"),
        (with("/memory", json!("lots")), "memory"),
    ] {
        refused(&server, &config, expected)?;
    }
    let output = server.command("bixi-vmm").args(["--config", "/no/such/file"]).run()?;
    check!(output.error_text().contains("/no/such/file"), "{}", output.describe());
    check!(output.ended.code.is_some_and(|c| c != 0), "{}", output.describe());
    // The good one is good: what was refused was refused for its fault.
    Guest::boot(&server, &GuestPlan::new("good", Kernel::BzImage), Lease::Handle)?;
    Ok(())
}

fn no_kvm(rack: &Rack) -> Result<()> {
    let server = rack.server(1);
    let config = serde_json::to_value(GuestPlan::new("bad", Kernel::BzImage).config)?;
    server.sh("mv /dev/kvm /dev/no-kvm")?;
    let result = refused(&server, &config, "/dev/kvm");
    server.sh("mv /dev/no-kvm /dev/kvm")?;
    result
}

fn in_use(rack: &Rack) -> Result<()> {
    let server = rack.server(1);
    let card = Card::start(&server, Lease::Handle)?;
    card.segment(SEGMENT, &Pair::segment(&server))?;
    let disk = bixi_tests::disk_id(1);
    let socket = card.disk(&disk, 8 << 20)?;

    // The same disk on another socket, by the same process.
    let attach = |socket: &str| DiskAttach {
        epoch: 1,
        socket: socket.into(),
        queues: 4,
        read_only: false,
        require_sealed: true,
        limits: bixi_api::storage::DiskLimits::NONE,
    };
    expect_refusal(
        "a disk attached twice",
        card.attach_as(&disk, &attach("/run/bixi/other.sock")),
    )?;
    expect_refusal("a disk created twice", card.disk(&disk, 8 << 20))?;
    expect_refusal("no such disk", card.attach("d-99999999999999999999", 1))?;
    expect_refusal("a wrong id", card.disk("../../etc", 8 << 20))?;

    // A port twice, an address twice, nonsense.
    let port = |mac: &str, socket: &str| PortAdd {
        epoch: 3,
        socket: socket.into(),
        segment: SEGMENT,
        mac: mac.to_owned(),
        ipv4: vec![[192, 168, 7, 9].into()],
        queue_pairs: 1,
        require_sealed: true,
        limits: bixi_api::network::PortLimits::NONE,
    };
    card.port_as("eni-1", &port("02:00:00:00:00:09", "/run/bixi/p1.sock"))?;
    card.port_as("eni-1", &port("02:00:00:00:00:09", "/run/bixi/p1.sock"))?;
    for (what, id, port) in [
        ("another socket", "eni-1", port("02:00:00:00:00:09", "/run/bixi/p2.sock")),
        ("the address of another port", "eni-2", port("02:00:00:00:00:0a", "/run/bixi/p2.sock")),
        ("a wrong hardware address", "eni-3", port("nonsense", "/run/bixi/p3.sock")),
        ("a group address", "eni-3", port("03:00:00:00:00:09", "/run/bixi/p3.sock")),
    ] {
        expect_refusal(what, card.port_as(id, &port))?;
    }
    let mut lower = port("02:00:00:00:00:09", "/run/bixi/p1.sock");
    lower.epoch = 2;
    expect_refusal("a lower epoch", card.port_as("eni-1", &lower))?;

    // Unknown paths and fields are refused in the envelope too.
    let unknown = card.storage.control().get::<Value>("/v1/nonsense");
    check!(matches!(unknown, Err(bixi_api::client::ClientError::Refused(_))), "{unknown:?}");
    let field = card.storage.control().post::<Value>("/v1/disks", &json!({"id": "x", "colour": 1}));
    check!(field.as_ref().is_err_and(|e| e.to_string().contains("colour")), "{field:?}");

    // Two VMs on one disk: the second does not get it, the first does not notice.
    let plan = |id: &str| GuestPlan::new(id, Kernel::BzImage).disk(&disk, &socket);
    let mut first = Guest::boot(&server, &plan("guest-first"), Lease::Handle)?;
    let second = Guest::start(&server, &plan("guest-second"), Lease::Handle);
    first.sh("bixi-lab load /dev/vda --seconds 2", LIMIT)?;
    if let Ok(second) = second {
        let devices = second.describe()?.devices;
        check!(!devices.iter().any(|d| d.kind == "virtio-blk" && d.connected), "{devices:?}");
    }
    let report = first.sh("bixi-lab load /dev/vda --seconds 2", LIMIT)?;
    check!(report.contains(r#""failures":[]"#), "{report}");
    Ok(())
}

fn expect_refusal<T: std::fmt::Debug>(what: &str, result: Result<T>) -> Result<()> {
    match result {
        Err(Failure::Control(bixi_api::client::ClientError::Refused(refusal))) => {
            check!(!refusal.message.is_empty() && !refusal.code.is_empty(), "{refusal:?}");
            Ok(())
        }
        other => Err(Failure::new(format!("{what} should be refused: {other:?}"))),
    }
}
