//! The units are what systemd understands, and keep what the agent promises.

use super::*;
use std::path::PathBuf;
use std::process::Command;

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("units")
}

#[test]
fn systemd_understands_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("SKIPPED: there is no systemd-analyze");
        return;
    }
    // Their programs and settings are looked for where they are installed: a root that has them.
    let root = tempfile::tempdir().unwrap();
    let there = |path: &str| root.path().join(path);
    for folder in ["usr/lib/bixi/current/bin", "etc/systemd/system", "etc/bixi", "bin"] {
        std::fs::create_dir_all(there(folder)).unwrap();
    }
    let programs = ["usr/lib/bixi/current/bin/bixi-agent", "usr/lib/bixi/current/bin/bixi-cloud"];
    for program in programs.into_iter().chain(["bin/true"]) {
        std::fs::copy("/bin/true", there(program)).unwrap();
    }
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify").arg("--man=no").arg("--recursive-errors=no");
    verify.arg(format!("--root={}", root.path().display()));
    for unit in UNITS.iter().filter(|unit| unit.ends_with(".service")) {
        std::fs::copy(units().join(unit), there("etc/systemd/system").join(unit)).unwrap();
        verify.arg(format!("/etc/systemd/system/{unit}"));
    }
    let output = verify.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn stopping_the_agent_stops_nothing_else() {
    let read = |unit| std::fs::read_to_string(units().join(unit)).unwrap();
    let (agent, holder) = (read(AGENT_UNIT), read(INSTANCES_UNIT));
    let has = |text: &str, line: &str| text.lines().any(|one| one == line);
    for line in ["KillMode=process", "OOMPolicy=continue", "Requires=bixi-instances.service"] {
        assert!(has(&agent, line), "{line}");
    }
    for line in ["KillMode=process", "OOMPolicy=continue", "Delegate=yes", "SendSIGKILL=no"] {
        assert!(has(&holder, line), "{line}");
    }
    for word in ["PartOf=", "BindsTo=", "StopWhenUnneeded="] {
        assert!(!holder.contains(word), "the holder would end with the agent: {word}");
    }
    assert!(!agent.lines().any(|line| line.starts_with("RuntimeDirectory=")));
}
