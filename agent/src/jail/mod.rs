//! The jail of a VMM: everything around it that the agent makes before the VMM's first instruction.
//!
//! `bixi-agent jail SPEC` is started for each VMM, alone and with one thread. It opens every file that the VMM gets, enters
//! namespaces of its own (mounts, processes, network, IPC, host name), and forks. The child builds a root that is empty
//! but for the directory of this instance's card sockets, then waits for one byte on its standard input: the agent has
//! written the start down. Whoever closes the pipe instead (a dying agent does) ends the child, so no VMM runs that no record
//! knows. After the byte it marks the start as made and becomes `bixi-vmm --jail`, which takes the last steps that need
//! its libraries loaded (`bixi_compute::jail`: change the root, become its own user, drop all capabilities, forbid new privileges)
//! and confines its threads to the system calls that they need.
//!
//! The parent says the child's process id on standard output once the child is ready, and ends; the child is in a session
//! of its own, tied to nobody's death, with its output in a file.

pub mod cgroup;
mod root;

use crate::durable;
use crate::process::close_inherited;
use bixi_api::compute::{ConsoleConfig, VmConfig};
use bixi_api::file::FileSource;
use rustix::fs::MemfdFlags;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, setrlimit, setsid};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the card sockets' directory is inside the jail.
pub const CARDS: &str = "/cards";
/// More descriptors than any VM needs: two for each queue of 64 disks with 64 queues.
const MAX_FILES: u64 = 16_384;

/// What the agent tells the jail, in a file that only root can write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Spec {
    /// The program.
    pub vmm: PathBuf,
    /// The VM. Its files are paths of this server, which the VMM gets as descriptors; sockets of disks and interfaces are
    /// paths inside the jail.
    pub config: VmConfig,
    /// The instance's own user and group.
    pub user: u32,
    /// The directory of the card sockets.
    pub cards: PathBuf,
    /// An empty directory to build the root on.
    pub root: PathBuf,
    /// The file that is made when the VMM has had its permission.
    pub launched: PathBuf,
}

/// Why there is no jail.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct JailError {
    what: String,
    #[source]
    source: io::Error,
}

type Result<T> = std::result::Result<T, JailError>;

/// Names what was being done.
trait Attempt<T> {
    fn attempt(self, what: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Attempt<T> for std::result::Result<T, E> {
    fn attempt(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| JailError { what: what.into(), source: source.into() })
    }
}

/// Builds the jail that the file at `path` describes. In the parent it returns once the child is ready; in the child
/// it does not return but becomes the VMM. Must be called while the process has one thread.
///
/// # Errors
/// Anything of it cannot be made; nothing is left behind but files.
pub fn run(path: &Path) -> Result<()> {
    close_inherited().attempt("close what was left open")?;
    let text = std::fs::read(path).attempt(format!("read {}", path.display()))?;
    let spec: Spec = serde_json::from_slice(&text).attempt(format!("read {}", path.display()))?;
    let handed = Handed::open(&spec)?;
    let (ready, told) = io::pipe().attempt("make a pipe")?;
    let flags = UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS;
    // SAFETY: `FILES` is not among the flags, so no thread can see descriptors of another table; there is one thread.
    unsafe { unshare_unsafe(flags) }.attempt("make namespaces: is the agent root?")?;
    // SAFETY: there is one thread, so the child may do whatever the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).attempt("fork"),
        0 => {
            drop(ready);
            child(&spec, handed, told)
        }
        pid => {
            drop(told);
            parent(pid, ready)
        }
    }
}

/// Waits until the child is ready and says its number.
fn parent(pid: i32, mut ready: io::PipeReader) -> Result<()> {
    if ready.read(&mut [0]).attempt("hear of the child")? == 0 {
        // The child has said on standard error why.
        return Err(io::Error::other("see above")).attempt("prepare the VMM's process");
    }
    writeln!(io::stdout(), "{pid}").attempt("tell the child's number")
}

/// Prepares, waits for permission and becomes the VMM.
fn child(spec: &Spec, mut handed: Handed, mut told: io::PipeWriter) -> Result<()> {
    setsid().attempt("make a session")?;
    // Through it the VMM learns its own memory use, where there is no /proc.
    let status = File::open("/proc/self/status").attempt("open /proc/self/status")?;
    handed.config.host.status = handed.hand(status.into())?;
    let root = root::build(&spec.root, &spec.cards)?;
    limit_resources(spec)?;
    let mut command = handed.command(spec, root)?;
    let launched = File::options().write(true).create(true).truncate(true).open(&spec.launched);
    let mut launched = launched.attempt(format!("open {}", spec.launched.display()))?;
    told.write_all(b"r").attempt("tell that the child is ready")?;
    drop(told);
    if io::stdin().read(&mut [0]).attempt("wait for permission")? == 0 {
        // The agent has thought better of it, or is gone.
        std::process::exit(0);
    }
    launched.write_all(b"1").attempt("note the start")?;
    Err(command.exec()).attempt(format!("start {}", spec.vmm.display()))
}

/// Files that the VMM gets.
struct Handed {
    config: VmConfig,
    files: Vec<OwnedFd>,
}

impl Handed {
    /// Opens what the configuration names and names it by descriptor.
    fn open(spec: &Spec) -> Result<Self> {
        let mut this = Self { config: spec.config.clone(), files: Vec::new() };
        let mut config = spec.config.clone();
        for source in [Some(&mut config.boot.kernel), config.boot.initrd.as_mut()] {
            this.replace(source, |path| Ok(File::open(path)?.into()))?;
        }
        this.replace(Some(&mut config.host.kvm), |path| {
            Ok(File::options().read(true).write(true).open(path)?.into())
        })?;
        this.replace(config.control.as_mut(), listen)?;
        if let ConsoleConfig::Socket(source) = &mut config.console {
            this.replace(Some(source), listen)?;
        }
        this.config = config;
        Ok(this)
    }

    fn replace(
        &mut self,
        source: Option<&mut FileSource>,
        open: impl Fn(&Path) -> io::Result<OwnedFd>,
    ) -> Result<()> {
        if let Some(source) = source
            && let FileSource::Path(path) = &*source
        {
            let file = open(path).attempt(format!("open {}", path.display()))?;
            *source = self.hand(file)?;
        }
        Ok(())
    }

    /// Lets `file` pass to the VMM; how the configuration names it.
    fn hand(&mut self, file: OwnedFd) -> Result<FileSource> {
        fcntl_setfd(&file, FdFlags::empty()).attempt("hand a descriptor over")?;
        let source = FileSource::Fd(file.as_raw_fd());
        self.files.push(file);
        Ok(source)
    }

    /// The VMM's command line: everything by descriptor.
    fn command(&mut self, spec: &Spec, root: OwnedFd) -> Result<Command> {
        let text = serde_json::to_vec(&self.config).attempt("write the configuration")?;
        let memfd = rustix::fs::memfd_create(c"vm.json", MemfdFlags::CLOEXEC);
        let mut file = File::from(memfd.attempt("make a file in memory")?);
        file.write_all(&text).attempt("write the configuration")?;
        io::Seek::rewind(&mut file).attempt("write the configuration")?;
        let (config, root_number) = (file.as_raw_fd(), root.as_raw_fd());
        self.hand(file.into())?;
        self.hand(root)?;
        let null = File::open("/dev/null").attempt("open /dev/null")?;
        let log = io::stderr().as_fd().try_clone_to_owned().attempt("hand the log over")?;
        let mut command = Command::new(&spec.vmm);
        command.arg("--config").arg(format!("fd:{config}"));
        command.arg("--jail").arg(format!("{root_number}:{}", spec.user));
        command.stdin(null).stdout(log).env_clear().current_dir("/");
        Ok(command)
    }
}

/// A listening socket that only root can reach; one of an earlier VMM is replaced.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    durable::remove(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener.into())
}

fn limit_resources(spec: &Spec) -> Result<()> {
    let threads = u64::from(spec.config.cpus.count) + 16;
    for (resource, most) in
        [(Resource::Nofile, MAX_FILES), (Resource::Core, 0), (Resource::Nproc, threads)]
    {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(resource, limit).attempt("limit what the VMM may use")?;
    }
    Ok(())
}
