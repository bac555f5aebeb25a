//! What a VMM can and cannot do, as the kernel says.

use crate::guest::ECHO;
use crate::rig::Rig;
use bixi_api::agent::InstanceState;
use std::fs;
use std::path::{Path, PathBuf};

fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_vmm_has_its_own_user_and_namespaces_and_sees_nothing_but_its_card_sockets() {
    let Some(mut rig) = Rig::new() else { return };
    rig.start(None);
    rig.desire(&rig.instance(ECHO));
    rig.wait_state(InstanceState::Running);
    let pid = rig.one_vmm();
    assert_eq!(status(pid, "Uid"), "200001");
    assert_eq!(status(pid, "Gid"), "200001");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status(pid, set), 16).unwrap(), 0, "{set}");
    }
    assert_eq!((status(pid, "NoNewPrivs"), status(pid, "Seccomp")), ("1".into(), "2".into()));
    for namespace in ["mnt", "pid", "net", "ipc", "uts"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    assert_eq!(names(&root), ["cards"]);
    let mut sockets = names(&root.join("cards"));
    sockets.sort();
    assert_eq!(sockets, ["c-0123456789abcdefghij", "d-0123456789abcdefghij", "eni-1"]);
    assert!(fs::write(root.join("x"), "").is_err() && fs::write(root.join("cards/x"), "").is_err());
    // One mount for the root and one for the sockets, nothing of the host.
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 2, "{mounts}");
    // No terminal, no pipe to the agent: its death closes nothing.
    let (stat, session) = (fs::read_to_string(format!("/proc/{pid}/stat")).unwrap(), 5 - 2);
    let fields = stat.rsplit_once(") ").unwrap().1;
    assert_eq!(fields.split(' ').nth(session), Some(pid.to_string().as_str()), "own session");
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(fd.unwrap().path()).unwrap();
        assert!(!target.to_string_lossy().starts_with("pipe:"), "{target:?}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}
