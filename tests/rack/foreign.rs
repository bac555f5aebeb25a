//! Front ends that are not ours drive the card: QEMU's vhost-user devices and DPDK's virtio-user.

use crate::bed::Check;
use bixi_api::network::{PortAdd, SegmentConfig};
use bixi_api::storage::DiskAttach;
use bixi_lab::{Console, Process, Rack, Server};
use bixi_tests::{
    Card, Failure, Guest, GuestPlan, Kernel, Lease, Pair, Result, SEGMENT, check, disk_id, wait_for,
};
use std::net::Ipv4Addr;
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "qemu_drives_both_services_through_kills", slow: false, run: qemu },
    Check { name: "unsealed_memory_is_refused_unless_allowed", slow: false, run: sealing },
    Check { name: "testpmd_drives_two_ports", slow: false, run: testpmd },
];

const LIMIT: Duration = Duration::from_secs(90);

const DISK: &str = "/run/bixi/sockets/qemu-disk.sock";
const PORT: &str = "/run/bixi/sockets/qemu-port.sock";
const MAC: &str = "02:00:00:00:02:01";

/// Serves a disk and a port for a front end that is not ours.
fn serve(card: &Card, sealed: bool) -> Result<String> {
    let id = disk_id(700);
    let create =
        bixi_api::storage::DiskCreate { id: id.clone(), size: Some(32 << 20), image: None };
    let control = card.storage.control();
    control.post::<bixi_api::storage::DiskDescription>("/v1/disks", &create)?;
    let attach = DiskAttach {
        epoch: 1,
        socket: DISK.into(),
        queues: 2,
        read_only: false,
        require_sealed: sealed,
        limits: bixi_api::storage::DiskLimits::NONE,
    };
    card.attach_as(&id, &attach)?;
    card.segment(SEGMENT, &Pair::segment(card.server()))?;
    let port = PortAdd {
        epoch: 1,
        socket: PORT.into(),
        segment: SEGMENT,
        mac: MAC.to_owned(),
        ipv4: vec![Ipv4Addr::new(192, 168, 7, 50)],
        queue_pairs: 2,
        require_sealed: sealed,
        limits: bixi_api::network::PortLimits::NONE,
    };
    card.port_as("eni-qemu", &port)?;
    Ok(id)
}

/// Starts a QEMU whose disk and network are the card's. It waits until somebody has connected to its console.
fn start_qemu(server: &Server, sealed: bool) -> Result<(Process, Console)> {
    let seal = if sealed { "on" } else { "off" };
    let words = format!(
        "-L /opt/firmware -M pc,accel=kvm,memory-backend=mem -cpu host -smp 2 -m 192 -nodefaults \
         -display none -object memory-backend-memfd,id=mem,size=192M,share=on,seal={seal} \
         -serial unix:/run/bixi/qemu.sock,server=on,wait=on \
         -chardev socket,id=disk,path={DISK},reconnect=1 \
         -device vhost-user-blk-pci,chardev=disk,num-queues=2 \
         -chardev socket,id=port,path={PORT},reconnect=1 \
         -netdev vhost-user,id=net,chardev=port,queues=2 \
         -device virtio-net-pci,netdev=net,mac={MAC},mq=on,vectors=6,romfile= \
         -kernel /opt/guest/bzImage -initrd /opt/guest/initrd"
    );
    let process = server
        .command("/opt/bin/qemu-system-x86_64")
        .args(words.split_whitespace())
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .spawn_logged("/run/bixi/log/qemu.log")?;
    let stream = wait_for("QEMU's console", LIMIT, || {
        if let Some(ended) = process.ended() {
            return Ok(Some(Err(Failure::new(format!("QEMU ended: {ended:?}")))));
        }
        Ok(Some(Ok(server.connect("/run/bixi/qemu.sock")?)))
    })??;
    Ok((process, Console::new("QEMU's guest", stream)?))
}

fn qemu(rack: &Rack) -> Result<()> {
    let server = rack.server(1);
    let mut card = Card::start(&server, Lease::Handle)?;
    serve(&card, true)?;
    let neighbour = Ipv4Addr::new(192, 168, 7, 51);
    let port = card.port("eni-neighbour", SEGMENT, "02:00:00:00:02:02", neighbour)?;
    let plan = GuestPlan::new("guest-neighbour", Kernel::Elf).nic(
        "eni-neighbour",
        &port,
        "02:00:00:00:02:02",
    );
    let _neighbour = Guest::boot(&server, &plan, Lease::Handle)?;
    let (_qemu, mut console) = start_qemu(&server, true)?;
    console.login(Duration::from_secs(180))?;

    let port = card.describe_port("eni-qemu")?;
    check!(port.connected && port.last_fault.is_none(), "{port:?}");
    let lease = console.sh("cat /tmp/lease.eth0", LIMIT)?;
    check!(lease.contains("ip=192.168.7.50"), "{lease}");
    let serial = console.sh("cat /sys/block/vda/serial", LIMIT)?;
    check!(serial == disk_id(700)[2..], "{serial}");
    let ping = format!("ping -c 3 -W 5 {neighbour}");
    console.sh(&ping, LIMIT)?;
    console.sh("bixi-lab load /dev/vda --seconds 8 >/tmp/load 2>&1 &", LIMIT)?;
    for _ in 0..2 {
        card.storage.kill()?;
        card.network.kill()?;
        card.storage.start()?;
        card.network.start()?;
        wait_for("a ping after a kill", LIMIT, || {
            Ok(console.run(&ping, LIMIT)?.1.eq(&0).then_some(()))
        })?;
    }
    let report = console.sh("wait; cat /tmp/load", LIMIT)?;
    check!(report.contains(r#""failures":[]"#), "{report}");
    // A reboot: a new driver takes the same devices.
    let digest = console.sh("bixi-lab load --digest /dev/vda", LIMIT)?;
    console.send(b"reboot -f\n")?;
    console.login(Duration::from_secs(180))?;
    let now = console.sh("bixi-lab load --digest /dev/vda", LIMIT)?;
    check!(now == digest, "before the reboot {digest}, after it {now}");
    console.sh(&ping, LIMIT)?;
    Ok(())
}

fn sealing(rack: &Rack) -> Result<()> {
    let server = rack.server(1);
    let card = Card::start(&server, Lease::Handle)?;
    let id = serve(&card, true)?;
    let (qemu, console) = start_qemu(&server, false)?;
    let fault = wait_for("the refusal of unsealed memory", LIMIT, || {
        Ok(card.describe_disk(&id)?.attachment.and_then(|a| a.last_fault))
    })?;
    check!(fault.contains("seal"), "{fault}");
    // The process and its other sessions live.
    let disk = disk_id(701);
    let plan = GuestPlan::new("guest-sealed", Kernel::Elf).disk(&disk, &card.disk(&disk, 8 << 20)?);
    let mut guest = Guest::boot(&server, &plan, Lease::Handle)?;
    let report = guest.sh("bixi-lab load /dev/vda --seconds 2", LIMIT)?;
    check!(report.contains(r#""failures":[]"#), "{report}");
    drop((qemu, console));

    // Allowed, the same front end works.
    let card = {
        drop((guest, card));
        server.reset()?;
        Card::start(&server, Lease::Handle)?
    };
    serve(&card, false)?;
    let (_qemu, mut console) = start_qemu(&server, false)?;
    console.login(Duration::from_secs(180))?;
    let report = console.sh("bixi-lab load /dev/vda --seconds 2", LIMIT)?;
    check!(report.contains(r#""failures":[]"#), "{report}");
    Ok(())
}

fn testpmd(rack: &Rack) -> Result<()> {
    let server = rack.server(1);
    let card = Card::start(&server, Lease::Handle)?;
    let segment = SegmentConfig {
        generation: 1,
        network: Ipv4Addr::new(198, 18, 0, 0),
        prefix_len: 24,
        gateway: None,
        dns: Vec::new(),
        mtu: 1500,
        peers: Vec::new(),
        names: None,
    };
    card.segment(SEGMENT, &segment)?;
    // testpmd shares huge pages with the card.
    server.sh(
        "echo 100 >/proc/sys/vm/nr_hugepages && grep -q 'HugePages_Free: *100' /proc/meminfo",
    )?;
    let macs = ["02:00:00:00:03:01", "02:00:00:00:03:02"];
    for (number, mac) in macs.iter().enumerate() {
        let port = PortAdd {
            epoch: 1,
            socket: format!("/run/bixi/sockets/pmd{number}.sock").into(),
            segment: SEGMENT,
            mac: (*mac).to_owned(),
            ipv4: vec![Ipv4Addr::new(198, 18, 0, if number == 0 { 1 } else { 2 })],
            queue_pairs: 1,
            require_sealed: false,
            limits: bixi_api::network::PortLimits::NONE,
        };
        card.port_as(&format!("eni-pmd{number}"), &port)?;
    }
    // Once with each layout of a receive queue that the driver can choose.
    for mergeable in [1, 0] {
        let before = counters(&card)?;
        generate(&server, &macs, mergeable)?;
        let after = counters(&card)?;
        check!(after.0 > before.0 + 1000, "sent: {before:?}, {after:?}");
        check!(after.1 > before.1 + 1000, "received: {before:?}, {after:?}");
    }
    Ok(())
}

/// Packets the first port has sent and the second has received.
fn counters(card: &Card) -> Result<(u64, u64)> {
    let sent = card.describe_port("eni-pmd0")?.statistics.sent;
    Ok((sent, card.describe_port("eni-pmd1")?.statistics.received))
}

/// Packets go to and fro between both ports for a while.
fn generate(server: &Server, macs: &[&str; 2], mergeable: u8) -> Result<()> {
    let mut words = "-d /opt/bin/librte_net_virtio.so -d /opt/bin/librte_mempool_ring.so \
        --lcores 0@0,1@1 --no-pci --in-memory --single-file-segments --no-telemetry -m 160"
        .to_owned();
    for (number, mac) in macs.iter().enumerate() {
        words.push_str(&format!(
            " --vdev=net_virtio_user{number},path=/run/bixi/sockets/pmd{number}.sock,queues=1,\
             queue_size=256,mac={mac},mrg_rxbuf={mergeable}"
        ));
    }
    // Each port answers what it receives with source and destination swapped, so that both stay who they are; the first
    // packets come from the first port's address.
    words.push_str(&format!(
        " -- --nb-cores=1 --forward-mode=5tswap --port-topology=loop --tx-first \
         --total-num-mbufs=4000 --tx-ip=198.18.0.1,198.18.0.2 \
         --eth-peer=0,{} --eth-peer=1,{} --stats-period=1",
        macs[1], macs[0]
    ));
    let mut process =
        server.command("/opt/bin/dpdk-testpmd").args(words.split_whitespace()).spawn()?;
    process.wait_for("NIC statistics", LIMIT)?;
    server.sh("sleep 4")?;
    process.signal(2)?;
    let output = process.wait_with_output(LIMIT)?;
    check!(output.ended.code == Some(0), "{}", output.describe());
    Ok(())
}
