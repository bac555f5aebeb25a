//! The control socket and the command line, as an operator meets them.

use crate::guest::{Guest, Shape, udp};
use crate::server::{PROGRAM, Server, folder, refused, segment, wait_for};
use bixi_api::network::{
    NetworkDescription, Peer, PortAdd, PortDescription, SegmentConfig, SegmentDescription,
};
use std::process::Command;

#[test]
fn what_cannot_be_is_refused_by_name_and_leaves_nothing() {
    let server = Server::start(&[]);
    server.add_port(1, 1);
    let good = server.port(2, 1);
    let put = |path: &str, add: &PortAdd| refused(server.put::<PortDescription>(path, add)).code;
    let taken = server.port(1, 1);
    for (bad, code) in [
        (PortAdd { mac: "nonsense".into(), ..good.clone() }, "BadMac"),
        (PortAdd { segment: 1 << 24, ..good.clone() }, "BadSegment"),
        (PortAdd { mac: taken.mac.clone(), ..good.clone() }, "AddressInUse"),
        (PortAdd { ipv4: taken.ipv4.clone(), ..good.clone() }, "AddressInUse"),
        (PortAdd { socket: taken.socket.clone(), ..good.clone() }, "SocketInUse"),
        (PortAdd { socket: "/nowhere/at/all".into(), ..good.clone() }, "Failed"),
        (PortAdd { socket: server.path("log"), ..good.clone() }, "NotASocket"),
    ] {
        assert_eq!(put("/v1/ports/p2", &bad), code, "{bad:?}");
    }
    for id in ["..", "-x", "a.b"] {
        assert_eq!(put(&format!("/v1/ports/{id}"), &good), "BadId");
    }
    let mut unknown = serde_json::to_value(&good).unwrap();
    unknown["colour"] = 1.into();
    let error = refused(server.put::<PortDescription>("/v1/ports/p2", &unknown));
    assert!(error.code == "BadRequest" && error.message.contains("colour"), "{error:?}");
    let living = std::os::unix::net::UnixListener::bind(server.path("living")).unwrap();
    let in_use = PortAdd { socket: server.path("living"), ..good.clone() };
    assert_eq!(put("/v1/ports/p2", &in_use), "SocketInUse");
    drop(living);

    assert_eq!(server.get::<Vec<PortDescription>>("/v1/ports").unwrap().len(), 1);
    let files = |name: &str| std::fs::read_dir(server.path("state").join(name)).unwrap().count();
    assert_eq!((files("ports"), files("flows"), files("leases")), (1, 1, 1));
    assert!(!good.socket.exists());
    server.put::<PortDescription>("/v1/ports/p2", &good).unwrap();
}

#[test]
fn epochs_fence_a_port() {
    let server = Server::start(&[]);
    let at = |epoch| PortAdd { epoch, ..server.port(1, 1) };
    let put = |add: &PortAdd| server.put::<PortDescription>("/v1/ports/p1", add);
    put(&at(5)).unwrap();
    put(&at(5)).unwrap();
    assert_eq!(refused(put(&at(4))).code, "StaleEpoch");
    let otherwise = PortAdd { queue_pairs: 2, ..at(5) };
    assert_eq!(refused(put(&otherwise)).code, "PortExists");

    // A higher epoch is another placement: whoever had the port loses it.
    let guest = Guest::connect(&at(5).socket, &Shape::default());
    assert_eq!(put(&PortAdd { queue_pairs: 2, ..at(6) }).unwrap().port.epoch, 6);
    wait_for("the old session's end", || {
        (guest.keeper.with(|client| client.downs().len()).unwrap() > 0).then_some(())
    });
    let tables: Vec<_> = std::fs::read_dir(server.path("state/flows"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(tables, ["p1.6"]);
    drop(guest);

    // Deleted, it is fenced still.
    server.delete("/v1/ports/p1").unwrap();
    assert!(!at(6).socket.exists());
    assert_eq!(std::fs::read_dir(server.path("state/flows")).unwrap().count(), 0);
    assert_eq!(refused(put(&at(5))).code, "StaleEpoch");
    assert_eq!(refused(server.delete("/v1/ports/p1")).code, "NoSuchPort");
    put(&at(6)).unwrap();
}

#[test]
fn a_deleted_port_is_gone_under_its_guest() {
    let server = Server::start(&[]);
    let sockets = [1, 2].map(|n| server.add_port(n, 1));
    let [mut a, mut b] = sockets.each_ref().map(|socket| Guest::connect(socket, &Shape::default()));
    a.send_plain(&udp(1, 2, 1, b"x"));
    b.receive(0);
    server.delete("/v1/ports/p2").unwrap();
    a.send_plain(&udp(1, 2, 1, b"x"));
    wait_for("the drop", || (server.statistics(1).unknown_destination == 1).then_some(()));
    // The same address, on a new port.
    let again = PortAdd { epoch: 2, ..server.port(2, 1) };
    server.put::<PortDescription>("/v1/ports/p2", &again).unwrap();
    b.wait_starts(2);
    a.send_plain(&udp(1, 2, 1, b"again"));
    assert_eq!(b.receive(0).1, udp(1, 2, 1, b"again"));
}

#[test]
fn segments_are_told_whole_or_not_at_all() {
    let server = Server::start(&[]);
    let put = |config: &SegmentConfig| server.put::<SegmentDescription>("/v1/segments/7", config);
    put(&segment()).unwrap();
    put(&segment()).unwrap();
    let with = |generation, mtu| SegmentConfig { generation, mtu, ..segment() };
    assert_eq!(refused(put(&with(1, 1400))).code, "SegmentExists");
    put(&with(3, 1400)).unwrap();
    assert_eq!(refused(put(&with(2, 1400))).code, "StaleGeneration");
    assert_eq!(refused(put(&with(4, 10))).code, "BadMtu");
    let endpoint = "192.0.2.1:4789".parse().unwrap();
    let peer = Peer { mac: "02:00:00:00:00:99".into(), ipv4: [10, 0, 0, 99].into(), endpoint };
    let peers = SegmentConfig { peers: vec![peer], ..with(4, 1400) };
    let error = refused(put(&peers));
    assert!(error.code == "NoUnderlay" && error.hint.contains("--underlay"), "{error:?}");
    let all: Vec<SegmentDescription> = server.get("/v1/segments").unwrap();
    assert_eq!(all, [SegmentDescription { vni: 7, config: with(3, 1400) }]);

    server.add_port(1, 1);
    assert_eq!(refused(server.delete("/v1/segments/7")).code, "SegmentInUse");
    server.delete("/v1/ports/p1").unwrap();
    server.delete("/v1/segments/7").unwrap();
    assert_eq!(refused(server.delete("/v1/segments/7")).code, "NoSuchSegment");
    let missing = server.get::<SegmentDescription>("/v1/segments/x");
    assert_eq!(refused(missing).code, "BadSegment");
}

#[test]
fn the_command_line_does_what_the_socket_does() {
    let server = Server::start(&[]);
    let socket = server.path("p1.sock");
    let socket = socket.to_str().unwrap();
    let add = [
        "port",
        "add",
        "p1",
        "--socket",
        socket,
        "--epoch",
        "3",
        "--segment",
        "7",
        "--mac",
        "02:00:00:00:00:01",
        "--ipv4",
        "10.0.0.1,10.0.0.2",
        "--allow-unsealed",
    ];
    let set = [
        "segment",
        "set",
        "7",
        "--generation",
        "1",
        "--network",
        "10.0.0.0/24",
        "--gateway",
        "10.0.0.254",
        "--mtu",
        "1400",
    ];
    let run = |arguments: &[&str]| {
        let output = server.command(arguments);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(run(&set).0, Some(0));
    let (status, out, _) = run(&add);
    assert!(status == Some(0) && out.starts_with("ID  SEGMENT  MAC"), "{out}");
    let (_, out, _) = run(&["port", "list", "-o", "json"]);
    let ports: Vec<PortDescription> = serde_json::from_str(&out).unwrap();
    assert_eq!((ports[0].id.as_str(), ports[0].port.ipv4.len()), ("p1", 2));
    let (_, out, _) = run(&["port", "show", "p1"]);
    assert!(out.contains("lease until") && out.contains("too big"), "{out}");
    let (_, out, _) = run(&["segment", "show", "7"]);
    assert!(out.contains("10.0.0.254") && out.contains("1400"), "{out}");
    let (_, out, _) = run(&["status", "-o", "json"]);
    let status: NetworkDescription = serde_json::from_str(&out).unwrap();
    assert_eq!((status.ports, status.segments, status.underlay), (1, 1, None));

    let (code, _, error) = run(&["port", "delete", "p9"]);
    assert!(code == Some(1) && error.contains("no port p9"), "{error}");
    assert_eq!(run(&["port", "delete", "p1"]).0, Some(0));
    assert_eq!(run(&["segment", "delete", "7"]).0, Some(0));
    assert_eq!(run(&["port", "add", "p1"]).0, Some(2));
    let nobody = ["port", "list", "--control", "/nowhere"];
    assert_eq!(Command::new(PROGRAM).args(nobody).output().unwrap().status.code(), Some(3));
    assert_eq!(Command::new(PROGRAM).arg("--help").output().unwrap().status.code(), Some(0));
}

#[test]
fn a_process_that_cannot_start_says_why() {
    let server = Server::start(&[]);
    let elsewhere = folder();
    let (state, control) = (elsewhere.path().join("state"), elsewhere.path().join("control"));
    let start = |state: &std::path::Path, control: &std::path::Path, extra: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg("--state").arg(state).arg("--control").arg(control).args(extra);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, error) = start(&server.path("state"), &control, &[]);
    assert!(code == Some(1) && error.contains("belongs to a running process"), "{error}");
    let (code, error) = start(&state, &server.path("control"), &[]);
    assert!(code == Some(1) && error.contains("in use by a running process"), "{error}");
    let (code, error) = start(&state, &control, &["--underlay", "192.0.2.77:4789"]);
    assert!(code == Some(1) && error.contains("no address of this server"), "{error}");
    let (code, _) = start(&state, &control, &["--underlay", "here"]);
    assert_eq!(code, Some(2));
    let (code, error) = start(&state, &control, &["--cpu", "4000"]);
    assert!(code == Some(1), "{error}");
    assert!(!control.exists(), "the control socket stayed behind");
}

#[test]
fn a_process_that_is_told_to_end_goes_cleanly_and_keeps_its_promises() {
    let mut server = Server::start(&[]);
    let socket = server.add_port(1, 1);
    let guest = Guest::connect(&socket, &Shape::default());
    assert!(server.terminate().success());
    assert!(!socket.exists() && !server.path("control").exists());
    server.restart();
    guest.wait_starts(2);
    assert!(wait_for("the front end", || server.describe(1).connected.then_some(true)));
}
