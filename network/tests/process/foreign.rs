//! Front ends and drivers that are not ours: DPDK's virtio-user, and iPXE on QEMU's device.

use crate::guest::{Guest, Shape, pattern, udp};
use crate::server::{PATIENCE, Server, segment, wait_for};
use bixi_api::network::SegmentDescription;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program that ends with the test.
pub struct Running {
    pub child: Child,
    /// What it leaves behind when it is killed.
    pub leaves: Option<PathBuf>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(leaves) = &self.leaves {
            let _ = std::fs::remove_dir_all(leaves);
        }
    }
}

pub fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    found.is_ok()
}

/// testpmd on the port at `socket`, which sends back every packet with its addresses swapped.
fn testpmd(server: &Server, socket: &Path, name: &str, options: &str, queues: u16) -> Running {
    let device = format!(
        "net_virtio_user0,path={},mac=02:00:00:00:00:02,queues={queues},queue_size=256{options}",
        socket.display()
    );
    let log = File::create(server.path(&format!("testpmd-{name}"))).unwrap();
    let mut command = Command::new("dpdk-testpmd");
    command.args(["--lcores", "0@0-1,1@0-1", "--no-pci", "--no-huge", "-m", "256"]);
    let prefix = format!("bixi-{}-{name}", std::process::id());
    command.args([format!("--file-prefix={prefix}"), format!("--vdev={device}")]);
    command.args(["--", "--forward-mode=5tswap", "--total-num-mbufs=4096", "--nb-cores=1"]);
    command.args([format!("--rxq={queues}"), format!("--txq={queues}")]);
    // It ends when its input does, so that is kept open.
    let child = command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
    Running { child: child.unwrap(), leaves: Some(Path::new("/var/run/dpdk").join(prefix)) }
}

/// Sends a packet until it comes back, then checks that all others do.
fn bounce(a: &mut Guest, server: &Server, name: &str) {
    let deadline = Instant::now() + PATIENCE;
    while a.try_receive(0).is_none() {
        assert!(
            Instant::now() < deadline,
            "{name}: nothing comes back, see {}",
            server.folder.path().display()
        );
        a.try_send(0, &[0; 12], &udp(1, 2, 999, b"are you there?"));
        std::thread::sleep(Duration::from_millis(20));
    }
    a.drain(0);
    let mut back = 0;
    let mut sent = 0;
    while back < 2000 {
        if sent < 2000
            && sent - back < 64
            && a.try_send(0, &[0; 12], &udp(1, 2, 1000 + sent, &pattern(usize::from(sent) % 1400)))
        {
            sent += 1;
        }
        let Some((header, frame)) = a.try_receive(0) else {
            assert!(Instant::now() < deadline, "{name}: {back} of {sent} came back");
            std::thread::yield_now();
            continue;
        };
        assert_eq!(header[..2], [0, 0]);
        // 5tswap has exchanged hardware addresses, addresses and ports.
        assert_eq!(
            (&frame[..12], &frame[26..34]),
            (&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &[10, 0, 0, 2, 10, 0, 0, 1][..])
        );
        let port = u16::from_be_bytes([frame[36], frame[37]]);
        if port >= 1000 {
            assert!(
                frame[42..] == pattern(usize::from(port - 1000) % 1400),
                "{name}: frame {port} came to harm"
            );
        }
        back += 1;
    }
}

#[test]
fn dpdk_s_virtio_user_drives_a_port() {
    if !is_there("dpdk-testpmd") {
        println!(
            "skipped dpdk_s_virtio_user_drives_a_port: no dpdk-testpmd (apt-get install dpdk-dev)"
        );
        return;
    }
    for (name, options, queues) in [
        ("plain", "", 1),
        ("unmerged", ",mrg_rxbuf=0", 1),
        ("in-order", ",in_order=1", 1),
        ("any-order", ",in_order=0,mrg_rxbuf=0", 1),
        ("two-pairs", "", 2),
    ] {
        let mut server = Server::start(&[]);
        let sockets = [server.add_port(1, 1), server.add_port(2, queues)];
        let mut a = Guest::connect(&sockets[0], &Shape::default());
        let dpdk = testpmd(&server, &sockets[1], name, options, queues);
        bounce(&mut a, &server, name);
        // It goes without a word, and the next one is served.
        drop(dpdk);
        wait_for("the front end to be gone", || (!server.describe(2).connected).then_some(()));
        while a.try_receive(0).is_some() {}
        let _dpdk = testpmd(&server, &sockets[1], name, options, queues);
        bounce(&mut a, &server, name);
        assert!(server.is_alive());
    }
}

#[test]
fn ipxe_on_qemu_s_device_gets_its_address() {
    const ROMS: [&str; 2] = ["/usr/lib/ipxe/qemu/pxe-virtio.rom", "/usr/share/qemu/pxe-virtio.rom"];
    let rom = ROMS.iter().find(|rom| Path::new(rom).exists());
    let (Some(_), true) = (rom, is_there("qemu-system-x86_64")) else {
        println!(
            "skipped ipxe_on_qemu_s_device_gets_its_address: no QEMU with iPXE (apt-get install qemu-system-x86 ipxe-qemu)"
        );
        return;
    };
    // A device of virtio 1.x, a legacy one, and one with more pairs of queues than the driver uses.
    for (name, device, pairs) in [
        ("modern", "disable-legacy=on", 1),
        ("legacy", "disable-modern=on,disable-legacy=off", 1),
        ("pairs", "mq=on,vectors=10", 4),
    ] {
        let server = Server::start(&[]);
        server.put::<SegmentDescription>("/v1/segments/7", &segment()).unwrap();
        let socket = server.add_port(1, pairs);
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-accel",
            "tcg",
            "-m",
            "64",
            "-display",
            "none",
            "-nodefaults",
            "-no-reboot",
        ]);
        command.args([
            "-object",
            "memory-backend-memfd,id=ram,size=64M,share=on",
            "-machine",
            "pc,memory-backend=ram",
        ]);
        command.arg("-chardev").arg(format!("socket,id=port,path={}", socket.display()));
        command.arg("-netdev").arg(format!("vhost-user,id=net,chardev=port,queues={pairs}"));
        command
            .arg("-device")
            .arg(format!("virtio-net-pci,netdev=net,mac=02:00:00:00:00:01,bootindex=0,{device}"));
        let log = File::create(server.path(&format!("qemu-{name}"))).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let _qemu = Running { child, leaves: None };
        let deadline = Instant::now() + 3 * PATIENCE;
        loop {
            let port = server.describe(1);
            if port.lease_until.is_some() {
                assert!(port.statistics.answered >= 2, "{name}: an offer and an acknowledgement");
                assert_eq!(port.last_fault, None);
                break;
            }
            assert!(Instant::now() < deadline, "{name}: no lease; {port:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
