//! What an instance goes through, and what it does not notice.

use crate::guest::{DEAF, ECHO};
use crate::rig::{CIDATA, DISK, Rig, wait_for};
use bixi_api::agent::{
    Ending, InstanceLimits, InstanceState, KvmKind, Power, StopMode, WantedStream,
};
use bixi_api::network::{PortDescription, PortLimits};
use bixi_api::storage::{DiskDescription, DiskLimits};

#[test]
fn an_instance_runs_speaks_stops_starts_and_goes() {
    let Some(mut rig) = Rig::new() else { return };
    rig.start(None);
    let mut wanted = rig.instance(ECHO);
    rig.desire(&wanted);
    let running = rig.wait_state(InstanceState::Running);
    assert_eq!((running.epoch, running.boot, running.error), (1, 1, None));
    let phases: Vec<_> = running.phases.iter().map(|time| time.phase.as_str()).collect();
    assert_eq!(phases, ["images", "disks", "network", "vmm"]);
    let seen: Vec<_> = running.moments.iter().map(|moment| moment.what.as_str()).collect();
    assert_eq!(seen, ["accepted", "images", "disks", "network", "released", "running"]);
    let report = rig.cloud.report().unwrap();
    assert!(report.inventory.cores > 0 && report.inventory.disk_free > 0);
    assert_ne!(report.inventory.kvm, KvmKind::None);
    assert!(report.cards.iter().all(|card| card.pid.is_some()), "{:?}", report.cards);

    // Somebody looks at the console.
    rig.cloud.type_into_streams(b"hello");
    rig.cloud.desire(|desired| {
        desired.streams = vec![WantedStream { id: "c-1".into(), instance: "i-1".into() }];
    });
    wait_for("an echo", || {
        let seen = rig.cloud.stream("c-1")?;
        seen.windows(5).any(|window| window == b"hello").then_some(())
    });

    wanted.power = Power::Stopped;
    rig.desire(&wanted);
    let stopped = rig.wait_state(InstanceState::Stopped);
    assert_eq!(
        stopped.ended,
        Some(Ending::Stopped { forced: false }),
        "the guest heard the button"
    );
    assert!(rig.vmms().is_empty());

    // A guest that powers off stays off until another start is desired.
    (wanted.power, wanted.boot) = (Power::Running, 2);
    rig.cloud.type_into_streams(b"q");
    rig.desire(&wanted);
    rig.wait_state(InstanceState::Running);
    rig.cloud.desire(|desired| {
        desired.streams = vec![WantedStream { id: "c-2".into(), instance: "i-1".into() }];
    });
    let off = rig.wait_state(InstanceState::Stopped);
    assert_eq!((off.ended, off.boot), (Some(Ending::PoweredOff), 2));

    wanted.power = Power::Deleted;
    rig.desire(&wanted);
    rig.wait_state(InstanceState::Deleted);
    for id in [DISK, CIDATA] {
        assert!(!rig.path("disks").join(id).exists(), "{id} stayed behind");
    }
    assert!(!rig.path("run/vm/i-1").exists());
    rig.cloud.desire(|desired| desired.instances.clear());
    rig.cloud.wait("forgetting", |report| report.instances.is_empty().then_some(()));
    assert_eq!(std::fs::read_dir(rig.path("state/instances")).unwrap().count(), 0);
}

#[test]
fn a_reboot_and_a_guest_that_hears_no_button() {
    let Some(mut rig) = Rig::new() else { return };
    rig.start(None);
    let mut wanted = rig.instance(DEAF);
    wanted.stop = StopMode::Orderly { deadline_seconds: 1 };
    rig.desire(&wanted);
    rig.wait_state(InstanceState::Running);
    let first = rig.one_vmm();
    wanted.boot = 2;
    rig.desire(&wanted);
    rig.cloud.wait("second boot", |report| {
        let found = report.instances.first()?;
        (found.boot == 2 && found.state == InstanceState::Running).then_some(())
    });
    assert_ne!(rig.one_vmm(), first);
    wanted.power = Power::Stopped;
    rig.desire(&wanted);
    let stopped = rig.wait_state(InstanceState::Stopped);
    assert_eq!(stopped.ended, Some(Ending::Stopped { forced: true }));
}

#[test]
fn neither_the_cloud_nor_agent_nor_card_takes_a_guest_with_it() {
    let Some(mut rig) = Rig::new() else { return };
    rig.start(None);
    let wanted = rig.instance(ECHO);
    rig.desire(&wanted);
    rig.wait_state(InstanceState::Running);
    let vmm = rig.one_vmm();
    let storage = rig.processes("bixi-storage");

    // The agent without a cloud, from what it knows.
    rig.kill();
    rig.cloud.go_away();
    rig.start(None);
    wait_for("an agent that has found its instance", || {
        rig.log().matches("an instance runs").nth(1).map(drop)
    });
    assert_eq!((rig.one_vmm(), rig.processes("bixi-storage")), (vmm, storage.clone()));
    rig.cloud.forget_report();
    rig.cloud.come_back();
    rig.wait_state(InstanceState::Running);

    // The card dies without an agent: the VMM waits, and goes on with the next one.
    rig.kill();
    for program in ["bixi-storage", "bixi-network"] {
        for pid in rig.processes(program) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
    for program in ["bixi-storage", "bixi-network"] {
        wait_for("the card's end", || rig.processes(program).is_empty().then_some(()));
    }
    rig.cloud.forget_report();
    rig.start(None);
    let pid = rig.cloud.wait("a card", |report| {
        let up = report.cards.iter().all(|card| card.pid.is_some());
        up.then(|| report.cards.iter().find(|card| card.name == "network")?.pid).flatten()
    });
    rig.wait_state(InstanceState::Running);
    let control = rig.path("run/vm/i-1/control");
    wait_for("back ends", || {
        let vm = describe(&control)?;
        vm.devices.iter().all(|device| device.connected).then_some(())
    });
    assert_eq!(rig.one_vmm(), vmm);

    // And with one: the break is in the ledger.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    rig.cloud.wait("a card that was started again", |report| {
        let card = report.cards.iter().find(|card| card.name == "network")?;
        (card.restarts == 1 && card.pid.is_some()).then_some(())
    });
    // A desired state that leaves it out is no order to stop it.
    rig.cloud.desire(|desired| desired.instances.clear());
    rig.wait_state(InstanceState::Running);
    assert_eq!(rig.one_vmm(), vmm);
}

fn describe(control: &std::path::Path) -> Option<bixi_api::compute::VmDescription> {
    ask(control, "/v1/vm")
}

fn ask<T: serde::de::DeserializeOwned>(control: &std::path::Path, path: &str) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = bixi_api::client::ControlClient::new(control);
    runtime.block_on(client.get(path)).ok()
}

#[test]
fn the_rates_of_a_type_reach_the_card() {
    let Some(mut rig) = Rig::new() else { return };
    rig.start(None);
    let mut wanted = rig.instance(ECHO);
    wanted.limits = InstanceLimits {
        nic_packets: Some(300_000),
        nic_bits: Some(1_000_000_000),
        disk_iops: Some(20_000),
        ..wanted.limits
    };
    rig.desire(&wanted);
    rig.wait_state(InstanceState::Running);
    let on_disk = || {
        let path = format!("/v1/disks/{DISK}");
        let disk: DiskDescription = ask(&rig.path("run/storage.sock"), &path).unwrap();
        disk.attachment.unwrap().attach.limits
    };
    let on_port = || {
        let port: PortDescription = ask(&rig.path("run/network.sock"), "/v1/ports/eni-1").unwrap();
        port.port.limits
    };
    assert_eq!(on_disk(), DiskLimits { iops: Some(20_000), bytes_per_second: None });
    let (packets_per_second, bits_per_second) = (Some(300_000), Some(1_000_000_000));
    assert_eq!(on_port(), PortLimits { packets_per_second, bits_per_second });

    // An instance keeps what it was started with, and has the new rates with its next start.
    wanted.limits.disk_iops = Some(110_000);
    wanted.limits.nic_packets = None;
    rig.desire(&wanted);
    rig.wait_state(InstanceState::Running);
    assert_eq!(on_disk().iops, Some(20_000));
    wanted.boot = 2;
    rig.desire(&wanted);
    rig.cloud.wait("second boot", |report| {
        let found = report.instances.first()?;
        (found.boot == 2 && found.state == InstanceState::Running).then_some(())
    });
    assert_eq!(on_disk().iops, Some(110_000));
    assert_eq!(on_port(), PortLimits { packets_per_second: None, bits_per_second });
}

#[test]
fn a_lower_epoch_is_refused_and_a_second_agent_too() {
    let Some(mut rig) = Rig::new() else { return };
    rig.start(None);
    let mut wanted = rig.instance(ECHO);
    (wanted.epoch, wanted.boot) = (5, 1);
    rig.desire(&wanted);
    rig.wait_state(InstanceState::Running);
    let vmm = rig.one_vmm();
    (wanted.epoch, wanted.boot, wanted.power) = (4, 9, Power::Deleted);
    rig.desire(&wanted);
    let refused = rig
        .cloud
        .wait("a refusal", |report| report.instances.first().and_then(|found| found.error.clone()));
    assert_eq!(refused.code, "StaleEpoch");
    assert_eq!(rig.one_vmm(), vmm);

    let (status, said) = rig.join(&rig.cloud.token().to_string());
    assert!(status == 1 && said.contains("already"), "{said}");
    let first = rig.processes("bixi-agent");
    let mut second = std::process::Command::new(env!("CARGO_BIN_EXE_bixi-agent"));
    second.arg("serve").arg("--state").arg(rig.path("state"));
    let output = second.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("another bixi-agent uses"), "{said}");
    assert_eq!(rig.processes("bixi-agent"), first);
}

#[test]
fn a_damaged_image_and_a_missing_one_are_told_and_healed() {
    let Some(mut rig) = Rig::new() else { return };
    rig.start(None);
    let wanted = rig.instance(ECHO);
    let good = crate::guest::kernel(ECHO);
    let mut bad = good.clone();
    bad[190] ^= 1;
    rig.cloud.image("m-1.kernel", bad);
    rig.desire(&wanted);
    let error = rig.cloud.wait("an error", |report| report.instances.first()?.error.clone());
    assert_eq!(error.code, "BadImage", "{error}");
    assert!(
        !rig.path("state/images")
            .read_dir()
            .unwrap()
            .any(|e| { e.unwrap().file_name().to_string_lossy().ends_with(".new") })
    );
    rig.cloud.image("m-1.kernel", good);
    assert_eq!(rig.wait_state(InstanceState::Running).error, None);
}
