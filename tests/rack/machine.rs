//! A real machine of the cloud: a stock Debian with systemd, joined by the commands that the README tells an operator, from
//! a signed release bundle. Its units come and go; VMs and card stay.

use crate::bed::{Alone, WORKSPACE};
use bixi_image::cache::Cache;
use bixi_image::debian;
use bixi_lab::{Config, Console, Rack, Server};
use bixi_release::bundle::{About, make};
use bixi_release::key::PrivateKey;
use bixi_release::product::sources;
use bixi_tests::{Failure, Result, check, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub const CHECKS: &[Alone] =
    &[Alone { name: "units_come_and_go_and_what_runs_for_tenants_stays", run: units }];

/// An emulated machine with a whole system takes its time.
const LIMIT: Duration = Duration::from_secs(180);

/// The processes that carry instances, each with the time it started.
const CARRIERS: &str = "for p in $(pidof bixi-vmm bixi-storage bixi-network); do \
                        echo $(cat /proc/$p/comm) $p $(cut -d' ' -f22 /proc/$p/stat); done | sort";

fn units() -> Result<()> {
    let state = Path::new(WORKSPACE).join(".lab/machine");
    Rack::down(&state)?;
    let scratch = state.join("release");
    let mut config = Config::new(&state)?;
    config.cache = Path::new(WORKSPACE).join(".lab/cache");
    let system = debian::cached(&Cache::new(&config.cache));
    config.system = Some(system.map_err(|e| Failure::new(e.to_string()))?.folder);
    config.servers = 1;
    config.memory_mib = 2048;
    let bundle = bundle(&config.contents.binaries, &scratch)?;
    config.contents.files = vec![
        (bundle, "release/bixi.tar".to_owned()),
        (scratch.join("test.pub"), "release/test.pub".to_owned()),
    ];
    let rack = Rack::up(&config)?;
    let machine = Machine(rack.server(1));
    machine.story().map_err(|failure| Failure::new(format!("{failure}\n{}", machine.logs())))
}

/// A bundle of these programs, signed by a key whose public part is `test.pub` beside it.
fn bundle(binaries: &[PathBuf], folder: &Path) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(folder);
    let stripped = folder.join("bin");
    fs::create_dir_all(&stripped)?;
    for binary in binaries {
        let to = stripped.join(binary.file_name().unwrap_or_default());
        let done = Command::new("strip").arg("-o").arg(&to).arg(binary).status()?;
        check!(done.success(), "strip {}: {done}", binary.display());
    }
    let key = PrivateKey::generate("test").map_err(|e| Failure::new(e.to_string()))?;
    fs::write(folder.join("test.pub"), format!("{}\n", key.public()))?;
    let about = About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        commit: None,
    };
    let units = Path::new(WORKSPACE).join("release/units");
    make(&about, &sources(&stripped, &units), &key, folder).map_err(|e| Failure::new(e.to_string()))
}

/// A Debian server.
struct Machine(Server);

impl Machine {
    fn sh(&self, script: &str) -> Result<String> {
        let output = self.0.command("sh").args(["-c", script]).limit(LIMIT).run()?;
        check!(output.success(), "`{script}` {}", output.describe());
        Ok(output.text())
    }

    fn logs(&self) -> String {
        let script = "systemctl --no-pager status 'bixi*'; journalctl --no-pager -n 60 -u 'bixi*'; \
                      tail -n 20 /run/bixi/*/log /run/bixi/*.log /run/bixi/log/* 2>/dev/null; true";
        self.sh(script).unwrap_or_else(|e| e.to_string())
    }

    fn story(&self) -> Result<()> {
        self.becomes_a_cloud()?;
        self.sh("bixi image import /opt/guest/tiny --name tiny")?;
        self.sh("bixi instance run --type bixi.tiny --image tiny --name one --host-name one")?;
        let mut shell = self.login()?;
        self.confinement()?;
        self.units_come_and_go(&mut shell)?;
        self.sh("bixi instance reboot one")?;
        self.login()?;
        self.sh("bixi instance delete --force one")?;
        wait_for("a machine without a VM", LIMIT, || {
            let left = self.sh("pidof bixi-vmm; ls /run/bixi/vm; true")?;
            Ok(left.trim().is_empty().then_some(()))
        })
    }

    /// What an operator types.
    fn becomes_a_cloud(&self) -> Result<()> {
        let refused = self.0.command("/opt/bin/bixi").args(["release", "install"]);
        let refused = refused.arg("/opt/release/bixi.tar").limit(LIMIT).run()?;
        check!(!refused.success(), "a bundle was installed that nobody trusts");
        self.sh(
            "/opt/bin/bixi release install /opt/release/bixi.tar --trust /opt/release/test.pub",
        )?;
        let listed = self.sh("bixi release list")?;
        check!(listed.contains(env!("CARGO_PKG_VERSION")), "{listed}");
        self.sh(&format!("bixi cloud init --name {}", self.0.management()))?;
        let underlay = self.0.underlay();
        self.sh(&format!("bixi server token | bixi server join - --underlay {underlay}"))?;
        // Again, and nothing is other than before.
        let before = self.sh("systemctl show -p MainPID bixi-cloud bixi-agent")?;
        self.sh(&format!("bixi cloud init --name {}", self.0.management()))?;
        let after = self.sh("systemctl show -p MainPID bixi-cloud bixi-agent")?;
        check!(before == after, "{before} {after}");
        wait_for("a server that is alive", LIMIT, || {
            Ok(self.sh("bixi server list")?.contains("alive").then_some(()))
        })
    }

    fn login(&self) -> Result<Console> {
        let folder = self.sh("ls -d /run/bixi/vm/*")?;
        let console = self.0.connect(format!("{}/console", folder.trim()))?;
        let mut console = Console::new("one", console)?;
        console.login(LIMIT)?;
        Ok(console)
    }

    /// VM and card are in the holder's group, the agent alone in its own, and the VM has its limits.
    fn confinement(&self) -> Result<()> {
        let of = |program: &str| self.sh(&format!("cat /proc/$(pidof -s {program})/cgroup"));
        for program in ["bixi-vmm", "bixi-storage", "bixi-network"] {
            let group = of(program)?;
            check!(group.contains("/bixi-instances.service/"), "{program} is in {group}");
        }
        let group = of("bixi-agent")?;
        check!(group.trim().ends_with("/bixi-agent.service"), "the agent is in {group}");
        let limit = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/$(pidof -s bixi-vmm)/cgroup)/memory.max";
        let limit = self.sh(limit)?;
        check!(limit.trim().parse::<u64>().is_ok(), "its memory's limit is {limit}");
        Ok(())
    }

    fn units_come_and_go(&self, shell: &mut Console) -> Result<()> {
        let carriers = self.sh(CARRIERS)?;
        check!(carriers.lines().count() == 3, "{carriers}");
        let mut after = |act: &str| -> Result<()> {
            self.sh(act)?;
            let now = self.sh(CARRIERS)?;
            check!(now == carriers, "after `{act}`: {carriers} became {now}");
            let name = shell.sh("hostname", LIMIT)?;
            check!(name == "one", "after `{act}` the guest calls itself {name}");
            Ok(())
        };
        after("systemctl stop bixi-agent")?;
        after("systemctl daemon-reload")?;
        after("systemctl start bixi-agent")?;
        after("systemctl restart bixi-agent")?;
        after("systemctl kill -s KILL bixi-agent")?;
        after("systemctl restart bixi-cloud")?;
        after("systemctl kill -s KILL bixi-cloud")?;
        wait_for("agent and cloud that are back", LIMIT, || {
            let active = self.sh("systemctl is-active bixi-agent bixi-cloud || true")?;
            check!(active.lines().all(|line| line == "active"), "{active}");
            let instances = self.sh("bixi instance list")?;
            Ok(instances.contains("Running").then_some(()))
        })?;
        after("true")
    }
}
