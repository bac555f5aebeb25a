//! What needs no cloud.

use crate::rig::{User, built};
use serde_json::Value;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

pub fn usage() {
    let user = User::new();
    user.bixi("instance run").bad(2, "--image");
    user.bixi("--colour").bad(2, "--colour");
    user.bixi("instance list").bad(1, "bixi profile add NAME");
    user.bixi("--profile x instance list").bad(3, "no profile x");
    let help = user.bixi("instance run --help").good();
    assert!(help.contains("--user-data"), "{help}");
    assert!(user.bixi("--help").good().contains("BIXI_ACCESS_KEY_SECRET"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(user.bixi(&format!("completions {shell}")).good().contains("instance"));
    }
    // Nobody listens at port 1; the authority is a real one, of no cloud.
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    let file = user.home.path().join("ca.pem");
    std::fs::write(&file, ca).unwrap();
    let mut command = user.command("instance list");
    command.env("BIXI_ENDPOINT", "127.0.0.1:1").env("BIXI_CA", &file);
    user.run(&mut command).bad(1, "no access key");
    command.env("BIXI_ACCESS_KEY_ID", "K").env("BIXI_ACCESS_KEY_SECRET", "S");
    user.run(&mut command).bad(1, "look whether bixi-cloud runs there");
}

pub fn profiles() {
    let user = User::new();
    let ca = user.home.path().join("ca.pem");
    std::fs::write(&ca, "").unwrap();
    user.bixi("profile add a").bad(2, "--endpoint");
    let mut add = user.command("profile add a --endpoint x:1 --key-id K --key-secret-file - --ca");
    let mut child = add.arg(&ca).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"very-secret\n").unwrap();
    assert!(child.wait().unwrap().success());
    user.bixi(&format!("profile add b --endpoint y:1 --ca {}", ca.display())).good();
    let mode = std::fs::metadata(user.profiles()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kept: Value = serde_json::from_slice(&std::fs::read(user.profiles()).unwrap()).unwrap();
    assert_eq!(kept["profiles"]["a"]["access-key-secret"], "very-secret");
    user.bixi("profile use b").good();
    let list = user.bixi("profile list").good();
    assert!(!list.contains("very-secret") && list.contains("x:1"), "{list}");
    let json = user.bixi("profile list -o json").json();
    assert_eq!(json[1]["current"], true, "{json}");
    assert_eq!(user.bixi("profile list -o name").good(), "a\nb\n");
    user.bixi("profile use c").bad(3, "a, b");
}

pub fn doctor() {
    let user = User::new();
    let lacking = user.bixi("doctor --vmm /none/bixi-vmm");
    assert!(lacking.out.contains("/none/bixi-vmm"), "{lacking:#?}");
    lacking.bad(1, "can run no virtual machines");
    let Some(vmm) = built("bixi-vmm") else {
        eprintln!("SKIPPED: bixi-vmm is not built; no guest was run");
        return;
    };
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("SKIPPED: there is no usable /dev/kvm");
        return;
    }
    let checks = user.bixi(&format!("doctor -o json --vmm {}", vmm.display())).json();
    let guest = checks.as_array().unwrap().iter().find(|check| check["check"] == "guest");
    assert_eq!(guest.unwrap()["state"], "ok", "{checks:#}");
}
