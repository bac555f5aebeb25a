//! No call that a VMM's filters allow is unused, as strace sees it through a life: back ends that die, a console, pauses,
//! resets, statistics.

use crate::guest::{ECHO, kernel};
use crate::rig::{programs, wait_for};
use bixi_api::client::ControlClient;
use bixi_api::compute::{VmDescription, VmStatistics};
use bixi_api::network::PortDescription;
use bixi_api::storage::DiskDescription;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const DISK: &str = "d-0123456789abcdefghij";

/// A process that ends with its handle.
struct Own(Child);

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn card(programs: &Path, folder: &Path, name: &str) -> Own {
    let mut command = Command::new(programs.join(format!("bixi-{name}")));
    command.arg("serve").arg("--state").arg(folder.join(name));
    command.arg("--control").arg(folder.join(format!("{name}.sock")));
    if name == "storage" {
        command.arg("--root").arg(folder.join("disks"));
    }
    let log = File::options().create(true).append(true).open(folder.join("cards.log")).unwrap();
    Own(command.stdin(Stdio::null()).stderr(log).spawn().unwrap())
}

/// What a thread of each kind called after its filter was there.
fn called(trace: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut main, mut vcpu) = (BTreeSet::new(), BTreeSet::new());
    let mut confined = BTreeSet::new();
    for line in trace.lines() {
        // "123<name> call(…" or "123<name> <... call resumed>…"
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start().trim_start_matches("<... ");
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let own = thread.split('<').next().unwrap_or_default().to_owned();
        if rest.is_empty() || name.is_empty() || confined.is_empty() && name != "seccomp" {
            continue;
        }
        if name == "seccomp" && !confined.is_empty() {
            // Called by a vCPU's thread under the main thread's filter.
            main.insert(name);
            confined.insert(own);
        } else if name == "seccomp" {
            confined.insert(own);
        } else if thread.contains("<vcpu") && confined.contains(&own) {
            vcpu.insert(name);
        } else {
            main.insert(name);
        }
    }
    (main, vcpu)
}

#[test]
fn no_allowed_call_is_unused() {
    let Some(programs) = programs() else { return };
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: strace is not installed: apt-get install strace");
        return;
    }
    let folder = tempfile::Builder::new().prefix("bxs").tempdir_in("/tmp").unwrap();
    let at = |name: &str| folder.path().join(name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut cards = ["storage", "network"].map(|name| card(&programs, folder.path(), name));
    let (storage, network) =
        (ControlClient::new(at("storage.sock")), ControlClient::new(at("network.sock")));
    wait_for("the card", || {
        let ready = runtime.block_on(async {
            storage.get::<Value>("/v1/storage").await?;
            network.get::<Value>("/v1/network").await
        });
        ready.ok()
    });
    runtime.block_on(async {
        let disk = json!({"id": DISK, "size": 1 << 20});
        storage.post::<DiskDescription>("/v1/disks", &disk).await.unwrap();
        let attach = json!({"epoch": 1, "socket": at("d")});
        let path = format!("/v1/disks/{DISK}/attachment");
        storage.put::<DiskDescription>(&path, &attach).await.unwrap();
        let port = json!({"epoch": 1, "socket": at("n"), "segment": 7, "mac": "02:00:00:00:00:01", "ipv4": ["10.0.0.5"]});
        network.put::<PortDescription>("/v1/ports/eni-1", &port).await.unwrap();
    });
    fs::write(at("kernel"), kernel(ECHO)).unwrap();
    let config = json!({
        "id": "i-1", "memory": {"size": 32 << 20}, "cpus": {"count": 2},
        "boot": {"kernel": {"path": at("kernel")}},
        "disks": [{"id": DISK, "socket": {"path": at("d")}}],
        "nics": [{"id": "eni-1", "socket": {"path": at("n")}, "mac": "02:00:00:00:00:01"}],
        "console": {"socket": {"path": at("console")}}, "control": {"path": at("control")},
    });
    fs::write(at("vm.json"), config.to_string()).unwrap();
    let mut command = Command::new("strace");
    command.args(["-f", "-Y", "-qq", "-o"]).arg(at("trace")).arg(programs.join("bixi-vmm"));
    command.arg("--config").arg(at("vm.json")).stdin(Stdio::null());
    let mut vmm = Own(command.stderr(File::create(at("vmm.log")).unwrap()).spawn().unwrap());
    let client = ControlClient::new(at("control"));
    let devices = |connected: bool| {
        let vm = runtime.block_on(client.get::<VmDescription>("/v1/vm")).ok()?;
        vm.devices
            .iter()
            .all(|device| device.connected == connected || device.id == "rng")
            .then_some(())
    };
    wait_for("a running guest", || devices(true));
    let mut console = UnixStream::connect(at("console")).unwrap();
    console.write_all(b"hello").unwrap();
    console.read_exact(&mut [0; 5]).unwrap();
    drop(console);
    runtime.block_on(async {
        client.get::<VmStatistics>("/v1/vm/statistics").await.unwrap();
        for order in ["pause", "resume", "reset"] {
            client.put::<VmDescription>(&format!("/v1/vm/{order}"), &()).await.unwrap();
        }
    });
    for card in &mut cards {
        card.0.kill().unwrap();
        card.0.wait().unwrap();
    }
    wait_for("the loss of the card", || devices(false));
    let _cards = ["storage", "network"].map(|name| card(&programs, folder.path(), name));
    wait_for("a card that is back", || devices(true));
    runtime.block_on(client.put::<VmDescription>("/v1/vm/stop", &())).unwrap();
    assert!(vmm.0.wait().unwrap().success(), "{}", fs::read_to_string(at("vmm.log")).unwrap());

    let (main, vcpu) = called(&fs::read_to_string(at("trace")).unwrap());
    let source = include_str!("../../../compute/src/seccomp.rs");
    let list = |name: &str| -> BTreeSet<String> {
        let (_, text) = source.split_once(&format!("const {name}: ")).unwrap();
        let (text, _) = text.split_once("];").unwrap();
        let names = text.lines().filter_map(|line| {
            line.trim().strip_prefix("(").filter(|_| true)?.split('"').nth(1).map(str::to_owned)
        });
        names.collect()
    };
    let rare = list("RARE");
    let of_vcpu = list("VCPU");
    let all: BTreeSet<_> = of_vcpu.union(&list("MAIN")).cloned().collect();
    let unused = |allowed: &BTreeSet<String>, used: &BTreeSet<String>| -> Vec<String> {
        allowed
            .iter()
            .filter(|call| !used.contains(*call) && !rare.contains(*call))
            .cloned()
            .collect()
    };
    let used: BTreeSet<_> = main.union(&vcpu).cloned().collect();
    assert_eq!(unused(&all, &used), [""; 0], "the process is allowed what it never does");
    assert_eq!(unused(&of_vcpu, &vcpu), [""; 0], "vCPU threads are allowed what they never do");
    let outside: Vec<_> = used.difference(&all).collect();
    assert!(outside.is_empty(), "{outside:?} would have killed the VM");
}
