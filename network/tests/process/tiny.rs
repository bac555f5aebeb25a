//! The tiny image under QEMU, on two ports of the card: a guest of Debian's kernel that finds its network, its neighbour's
//! name, and what it is told of itself.

use crate::foreign::{Running, is_there};
use crate::server::{PATIENCE, Server};
use crate::services::{metadata, named};
use bixi_api::network::{Document, HttpTokens, MetadataDescription, SegmentDescription};
use bixi_image::cache::Cache;
use bixi_image::cidata::Seed;
use bixi_image::tiny::Tiny;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const USER_DATA: &str = "#!/bin/sh
echo \"user data: $(hostname) at $(cat /proc/uptime)\"
grep -H . /etc/resolv.conf
tries=0
until ping -c 1 -W 1 web || [ $tries -ge 120 ]; do tries=$((tries + 1)); sleep 1; done
ping -c 1 -W 5 web && echo \"found by name\"
ping -c 1 -W 5 web.lab.internal && echo \"found by whole name\"
nslookup 10.0.0.2 | grep name
";

/// Boots the tiny image on port `n`, with a disk if there is one; where its console is written.
fn boot(server: &Server, tiny: &Tiny, n: u8, disk: Option<&Path>) -> (Running, std::path::PathBuf) {
    let socket = server.add_port(n, 1);
    let console = server.path(&format!("console-{n}"));
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-m", "192", "-display", "none", "-nodefaults", "-no-reboot"]);
    command.args(["-object", "memory-backend-memfd,id=ram,size=192M,share=on"]);
    command.args(["-machine", "pc,memory-backend=ram", "-cpu", "max"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.arg("-kernel").arg(&tiny.kernel).arg("-initrd").arg(&tiny.initrd);
    command.args(["-append", "console=ttyS0 reboot=k panic=-1 quiet bixi.configure"]);
    command.arg("-chardev").arg(format!("socket,id=port,path={}", socket.display()));
    command.args(["-netdev", "vhost-user,id=net,chardev=port"]);
    // QEMU 7.2 crashes where a driver uses MSI-X, the control queue and vhost-user together.
    let device = "virtio-net-pci,netdev=net,disable-legacy=on,vectors=0,romfile=";
    command.arg("-device").arg(format!("{device},mac=02:00:00:00:00:{n:02x}"));
    if let Some(disk) = disk {
        let drive = format!("if=virtio,format=raw,read-only=on,file={}", disk.display());
        command.arg("-drive").arg(drive);
    }
    let log = File::create(server.path(&format!("qemu-{n}"))).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    (Running { child: command.spawn().unwrap(), leaves: None }, console)
}

/// Waits until a console says `line`; all that it said.
fn wait_for_line(server: &Server, console: &Path, line: &str) -> String {
    let deadline = Instant::now() + 6 * PATIENCE;
    loop {
        let text = std::fs::read(console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        if text.contains(line) {
            return text;
        }
        let folder = server.folder.path().display();
        assert!(Instant::now() < deadline, "no `{line}` on the console, see {folder}: {text}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn tiny_guests_find_their_network_their_neighbours_and_themselves() {
    let test = "tiny_guests_find_their_network_their_neighbours_and_themselves";
    if !is_there("qemu-system-x86_64") {
        println!("skipped {test}: no QEMU (apt-get install qemu-system-x86)");
        return;
    }
    let cache = Cache::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("image"));
    let tiny = match Tiny::build(&cache, &[]) {
        Ok(tiny) => tiny,
        Err(reason) => {
            println!("skipped {test}: the image cannot be built ({reason})");
            return;
        }
    };
    let server = Server::start(&[]);
    server.put::<SegmentDescription>("/v1/segments/7", &named(1, 2)).unwrap();

    // The neighbour is told of itself by a disk.
    let seed = Seed {
        instance_id: "i-2".into(),
        hostname: "web".into(),
        user_data: b"#!/bin/sh\necho \"script of $(hostname)\"\n".to_vec(),
        ..Seed::default()
    };
    let disk = server.path("cidata");
    std::fs::write(&disk, seed.disk().unwrap()).unwrap();
    let (_web, web) = boot(&server, &tiny, 2, Some(&disk));

    // The other by the metadata server, which wants a token.
    server.add_port(1, 1);
    let mut told = metadata(1, "i-1", HttpTokens::Required);
    told.documents.insert("latest/meta-data/hostname".into(), Document::Text("db".into()));
    told.documents.insert("latest/user-data".into(), Document::Text(USER_DATA.into()));
    server.put::<MetadataDescription>("/v1/ports/p1/metadata", &told).unwrap();
    let (_db, db) = boot(&server, &tiny, 1, None);

    let said = wait_for_line(&server, &web, "bixi-guest: ready at");
    assert!(said.contains("configured by the disk"), "{said}");
    assert!(said.contains("instance i-2, name web") && said.contains("script of web"), "{said}");
    let said = wait_for_line(&server, &db, "bixi-guest: ready at");
    assert!(said.contains("configured by the metadata server"), "{said}");
    for line in [
        "instance i-1, name db",
        "user data: db at",
        "search lab.internal",
        "nameserver 100.100.2.136",
        "found by name",
        "found by whole name",
        "name = web.lab.internal",
        "user data ended with 0",
    ] {
        assert!(said.contains(line), "no `{line}`: {said}");
    }
    assert!(server.describe(1).lease_until.is_some());
}
