//! Open vSwitch with DPDK, from Debian's packages, in a private folder beside any other that may run.

use super::{UP, accept, listen, measure};
use crate::rounds::{Outcome, Side};
use crate::setup::cores::Cores;
use crate::setup::folder::Folder;
use crate::setup::packages;
use crate::setup::process::Process;
use crate::{BenchError, Effort};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// `ovs-vswitchd` with two `dpdkvhostuserclient` ports and one flow between them.
#[derive(Debug, Default)]
pub struct OpenVSwitch {
    database: PathBuf,
}

impl Side for OpenVSwitch {
    fn name(&self) -> &str {
        "ovs-dpdk"
    }

    fn prepare(&mut self) -> Result<(), BenchError> {
        packages::ensure(DAEMON, &["openvswitch-switch-dpdk"])?;
        self.database = packages::ensure("ovsdb-server", &["openvswitch-switch"])?;
        Ok(())
    }

    fn run(&mut self, cores: &Cores, effort: &Effort) -> Result<Outcome, BenchError> {
        let folder = Folder::new()?;
        let sockets = [folder.file("a.sock"), folder.file("b.sock")];
        let listeners = [listen(&sockets[0])?, listen(&sockets[1])?];
        let database = self.start_database(&folder)?;
        let mut switch = start_switch(&folder, cores)?;
        add_ports(&folder, &sockets)?;
        let control = folder.file("br0.mgmt");
        switch.wait_until("make its bridge", UP, || control.exists())?;
        for (from, to) in [(1, 2), (2, 1)] {
            let flow = format!("in_port={from},actions=output:{to}");
            tool("ovs-ofctl", &["add-flow", &path(&control), &flow])?;
        }
        let outcome = measure(&[&switch, &database], cores, effort, || {
            Ok([accept(&listeners[0])?, accept(&listeners[1])?])
        })?;
        switch.stop();
        Ok(outcome)
    }
}

impl OpenVSwitch {
    fn start_database(&self, folder: &Folder) -> Result<Process, BenchError> {
        let file = folder.file("conf.db");
        tool("ovsdb-tool", &["create", &path(&file), SCHEMA])?;
        let socket = folder.file("db.sock");
        let mut command = Command::new(&self.database);
        command.arg(&file).arg(format!("--remote=punix:{}", socket.display()));
        command.arg(format!("--unixctl={}", folder.file("db.ctl").display()));
        command.env("OVS_RUNDIR", folder.path());
        let mut process = Process::start(command, None, folder.file("db.log"))?;
        process.wait_until("listen", Duration::from_secs(10), || socket.exists())?;
        Ok(process)
    }
}

fn start_switch(folder: &Folder, cores: &Cores) -> Result<Process, BenchError> {
    let mask = format!("{:#x}", 1u64 << cores.server.0);
    let extra = format!("--file-prefix=bench{} --no-pci --in-memory", std::process::id());
    configure(
        folder,
        &["--no-wait", "set", "Open_vSwitch", "."],
        &[
            ("dpdk-init", "true"),
            ("dpdk-socket-mem", "512"),
            ("dpdk-lcore-mask", &mask),
            ("pmd-cpu-mask", &mask),
            ("dpdk-extra", &extra),
        ],
    )?;
    let mut command = Command::new(DAEMON);
    command.arg(database(folder)).arg(format!("--unixctl={}", folder.file("sw.ctl").display()));
    command.env("OVS_RUNDIR", folder.path()).env("OVS_LOGDIR", folder.path());
    // The daemon puts its own threads where the masks say.
    Process::start(command, None, folder.file("log"))
}

fn configure(folder: &Folder, words: &[&str], settings: &[(&str, &str)]) -> Result<(), BenchError> {
    let settings: Vec<_> =
        settings.iter().map(|(key, value)| format!("other_config:{key}=\"{value}\"")).collect();
    let remote = format!("--db={}", database(folder));
    let words = [remote.as_str()].into_iter().chain(words.iter().copied());
    tool("ovs-vsctl", &words.chain(settings.iter().map(String::as_str)).collect::<Vec<_>>())
}

fn add_ports(folder: &Folder, sockets: &[PathBuf; 2]) -> Result<(), BenchError> {
    let remote = format!("--db={}", database(folder));
    // It waits until the switch has done as told.
    let vsctl = |words: &[&str]| {
        let words: Vec<_> =
            [remote.as_str(), "--timeout=20"].iter().chain(words).copied().collect();
        tool("ovs-vsctl", &words)
    };
    vsctl(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])?;
    for (at, socket) in sockets.iter().enumerate() {
        let (name, number) = (format!("vhu{at}"), format!("ofport_request={}", at + 1));
        let server = format!("options:vhost-server-path={}", socket.display());
        let kind = "type=dpdkvhostuserclient";
        vsctl(&[
            "add-port",
            "br0",
            &name,
            "--",
            "set",
            "Interface",
            &name,
            kind,
            &server,
            &number,
        ])?;
    }
    vsctl(&["set-fail-mode", "br0", "secure"])
}

fn database(folder: &Folder) -> String {
    format!("unix:{}", folder.file("db.sock").display())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// Runs one of the switch's own tools to its end.
fn tool(name: &'static str, words: &[&str]) -> Result<(), BenchError> {
    let program = packages::ensure(name, &["openvswitch-common", "openvswitch-switch"])?;
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.map_err(BenchError::system(format!("run {name}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(BenchError::Process { program: name.to_owned(), what: "do as told", said })
}
