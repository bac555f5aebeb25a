//! What operators and agents ask for, and how it is refused.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it found by failing"
)]

mod rig;

use bixi_api::storage::{DiskDescription, StorageDescription};
use rig::{DISK, Rig, code, until};
use std::fs;
use std::time::{Duration, Instant};

const OTHER: &str = "d-zyxwvutsrq9876543210";

fn rig() -> Rig {
    let mut rig = Rig::new(None);
    rig.start();
    rig.create(DISK, 8 << 20);
    rig
}

#[test]
fn epochs_fence_and_the_same_attachment_is_no_change() {
    let rig = rig();
    assert_eq!(rig.attach(DISK, 5).unwrap().epoch, 5);
    let now = rig.attach(DISK, 5).unwrap();
    assert!(now.attachment.unwrap().locked);
    assert_eq!(code(rig.attach(DISK, 4)), "StaleEpoch");
    assert_eq!(code(rig.attach(DISK, 6)), "DiskInUse");
    let mut elsewhere = rig.attachment(DISK, 5);
    elsewhere.socket = rig.path("elsewhere");
    assert_eq!(code(rig.attach_as(DISK, &elsewhere)), "DiskInUse");

    assert!(rig.detach(DISK).unwrap().attachment.is_none());
    assert!(!rig.socket(DISK).exists());
    assert!(rig.detach(DISK).unwrap().attachment.is_none(), "once more is no change");
    assert_eq!(code(rig.attach(DISK, 4)), "StaleEpoch");
    assert_eq!(rig.attach(DISK, 6).unwrap().epoch, 6);
    rig.detach(DISK).unwrap();
    assert_eq!(rig.show(DISK).epoch, 6);
}

#[test]
fn a_second_process_is_told_who_has_the_disk() {
    let mut first = rig();
    first.attach(DISK, 3).unwrap();
    let mut second = first.beside();
    second.start();
    let refused = second.attach(DISK, 4);
    let text = format!("{refused:?}");
    assert_eq!(code(refused), "DiskInUse");
    assert!(text.contains(&format!("process {}", first.pid())), "{text}");
    assert_eq!(code(second.delete(DISK)), "DiskInUse");
    assert_eq!(second.show(DISK).epoch, 3, "refused: the epoch stays");

    // The first dies: the second may have it, and the first's successor may not have it back.
    first.kill();
    until("the lock is free", || second.attach(DISK, 4).is_ok());
    until("it is held", || second.show(DISK).attachment.unwrap().locked);
    first.start();
    until("the stale attachment is dropped", || first.show(DISK).attachment.is_none());
    assert!(fs::read_dir(first.path("state")).unwrap().next().is_none());
    assert_eq!(code(first.attach(DISK, 3)), "StaleEpoch");
    assert_eq!(code(first.attach(DISK, 5)), "DiskInUse");
    assert!(second.show(DISK).attachment.unwrap().locked);
}

#[test]
fn bad_requests_say_what_is_wrong() {
    let rig = rig();
    let none = "d-99999999999999999999";
    assert_eq!(code(rig.attach(none, 1)), "NoSuchDisk");
    assert_eq!(code(rig.delete(none)), "NoSuchDisk");
    assert_eq!(code(rig.get::<DiskDescription>(&format!("/v1/disks/{none}"))), "NoSuchDisk");
    assert_eq!(code(rig.get::<DiskDescription>("/v1/disks/nonsense")), "BadDiskId");
    assert_eq!(code(rig.get::<DiskDescription>("/v1/disks/..%2f..%2fetc")), "BadDiskId");
    assert_eq!(code(rig.get::<DiskDescription>("/v1/nothing")), "NoSuchPath");
    let mut attach = rig.attachment(DISK, 1);
    attach.queues = 0;
    assert_eq!(code(rig.attach_as(DISK, &attach)), "BadQueues");
    attach = rig.attachment(DISK, 1);
    attach.socket = "relative".into();
    assert_eq!(code(rig.attach_as(DISK, &attach)), "BadSocket");
    attach.socket = rig.path("no/such/directory");
    assert_eq!(code(rig.attach_as(DISK, &attach)), "SocketUnusable");
    fs::write(rig.path("file"), b"x").unwrap();
    attach.socket = rig.path("file");
    assert_eq!(code(rig.attach_as(DISK, &attach)), "SocketUnusable");
    assert_eq!(fs::read(rig.path("file")).unwrap(), b"x");
    assert!(fs::read_dir(rig.path("state")).unwrap().next().is_none(), "nothing half-made");
    // None of that took the lock for good.
    rig.attach(DISK, 1).unwrap();
}

#[test]
fn a_damaged_disk_is_shown_and_hinders_nobody() {
    let mut rig = rig();
    rig.create(OTHER, 1 << 20);
    rig.attach(DISK, 1).unwrap();
    rig.kill();
    let meta = rig.root().join(DISK).join("meta");
    let mut bytes = fs::read(&meta).unwrap();
    bytes[30] ^= 1;
    fs::write(&meta, &bytes).unwrap();
    rig.start();
    rig.attach(OTHER, 1).unwrap();
    until("the damaged one is seen", || {
        let attachment = rig.show(DISK).attachment.unwrap();
        attachment.waiting.is_some_and(|why| why.contains("checksum"))
    });
    // Mended, it is served: what was promised stands.
    bytes[30] ^= 1;
    fs::write(&meta, &bytes).unwrap();
    until("it is served", || rig.show(DISK).attachment.unwrap().locked);
    rig.detach(DISK).unwrap();
    fs::write(&meta, b"nonsense").unwrap();
    assert!(rig.show(DISK).fault.is_some());
    assert_eq!(code(rig.attach(DISK, 2)), "DiskDamaged");
    rig.delete(DISK).unwrap();
    let all: Vec<DiskDescription> = rig.get("/v1/disks").unwrap();
    assert_eq!(all.len(), 1);
    let process: StorageDescription = rig.get("/v1/storage").unwrap();
    assert_eq!((process.disks, process.attached, process.pid), (1, 1, rig.pid()));
}

#[test]
fn a_killed_creation_leaves_nothing_that_looks_like_a_disk() {
    let mut rig = rig();
    // A large image without holes, so that the copy takes its time.
    let image = rig.path("image");
    let file = fs::File::create(&image).unwrap();
    let bytes: Vec<u8> = (0..1 << 20).map(|i| i as u8 | 1).collect();
    for part in 0..256u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, part << 20).unwrap();
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bixi-storage"));
    command.args(["disk", "create", OTHER, "--image"]).arg(&image);
    command.arg("--control").arg(rig.path("control"));
    let mut client = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let unfinished = rig.root().join(format!("{OTHER}.unfinished"));
    until("the creation has begun", || unfinished.exists() || client.try_wait().unwrap().is_some());
    rig.kill();
    assert!(!client.wait().unwrap().success());
    let left = unfinished.exists();
    rig.start();
    assert!(!unfinished.exists());
    assert_eq!(code(rig.get::<DiskDescription>(&format!("/v1/disks/{OTHER}"))), "NoSuchDisk");
    assert!(left, "the creation was over before the process was killed");
    // The same again, not killed; and ended by the operator.
    let mut again = command.spawn().unwrap();
    until("it is being made", || {
        rig.get::<DiskDescription>(&format!("/v1/disks/{OTHER}")).is_ok_and(|disk| {
            disk.creation.is_some_and(|creation| creation.done > 0 && creation.total == 256 << 20)
        })
    });
    rig.delete(OTHER).unwrap();
    assert!(!again.wait().unwrap().success());
    assert!(!unfinished.exists() && !rig.root().join(OTHER).exists());
}

#[test]
fn the_command_line_does_it_all_and_says_how_it_went() {
    let mut rig = Rig::new(None);
    let control = rig.path("control").display().to_string();
    let socket = rig.path("s").display().to_string();
    let (status, _, error) = rig.run(&["disk", "list", "--control", &control]);
    assert_eq!(status, Some(3));
    assert!(error.contains("is the process running?"), "{error}");
    rig.start();
    let run = |arguments: &[&str]| rig.run(&[arguments, &["--control", &control]].concat());
    let (status, table, error) = run(&["disk", "create", DISK, "--size", "1M"]);
    assert_eq!(status, Some(0), "{error}");
    assert!(table.contains("1 MiB") && table.contains("free"), "{table}");
    assert_eq!(run(&["disk", "create", DISK, "--size", "1M"]).0, Some(1));
    assert_eq!(run(&["disk", "create", DISK]).0, Some(2));
    assert_eq!(run(&["disk", "create", DISK, "--size", "1X"]).0, Some(2));
    let attach = ["disk", "attach", DISK, "--socket", &socket, "--epoch", "1"];
    assert_eq!(run(&attach).0, Some(0));
    let (_, table, _) = run(&["disk", "show", DISK]);
    assert!(table.contains("attached") && table.contains(&socket), "{table}");
    let (_, json, _) = run(&["disk", "list", "-o", "json"]);
    let disks: Vec<DiskDescription> = serde_json::from_str(&json).unwrap();
    assert!(disks[0].attachment.as_ref().unwrap().locked);
    let (status, _, error) = run(&["disk", "delete", DISK]);
    assert_eq!(status, Some(1));
    assert!(error.contains("Detach it first"), "{error}");
    assert_eq!(run(&["disk", "detach", DISK]).0, Some(0));
    assert_eq!(run(&["disk", "delete", DISK]).0, Some(0));
    let (status, help, _) = rig.run(&["--help"]);
    assert!(status == Some(0) && help.contains("Exit status"), "{help}");
    assert_eq!(rig.run(&["serve"]).0, Some(2));

    // A process that cannot start says why.
    let second =
        ["serve", "--root", "/nonexistent-root", "--state", &socket, "--control", &control];
    let (status, _, error) = rig.run(&second);
    assert_eq!(status, Some(1));
    assert!(error.contains("in use by a running process"), "{error}");
    let file = rig.path("file");
    fs::write(&file, b"x").unwrap();
    let (control, file) = (rig.path("c2").display().to_string(), file.display().to_string());
    let (status, _, error) = rig.run(&[
        "serve",
        "--root",
        &file,
        "--state",
        &rig.path("s2").display().to_string(),
        "--control",
        &control,
    ]);
    assert_eq!(status, Some(1));
    assert!(error.contains("the root directory"), "{error}");
}

#[test]
fn a_restarted_process_listens_before_it_looks_at_any_disk() {
    let mut rig = rig();
    rig.attach(DISK, 1).unwrap();
    rig.kill();
    // The whole root is gone for the moment, as if its device did not answer.
    let away = rig.path("away");
    fs::rename(rig.root(), &away).unwrap();
    rig.start();
    let begin = Instant::now();
    std::os::unix::net::UnixStream::connect(rig.socket(DISK)).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
    let attachment = rig.show(DISK).attachment.unwrap();
    assert!(!attachment.locked);
    until("it says what it waits for", || rig.show(DISK).attachment.unwrap().waiting.is_some());
    fs::remove_dir(rig.root()).unwrap();
    fs::rename(&away, rig.root()).unwrap();
    until("it is served", || rig.show(DISK).attachment.unwrap().locked);
}
