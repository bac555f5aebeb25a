//! A rack from outside: bring it up, find one that is up, use its servers, take it down.

use crate::error::{Attempt, Error, Result};
use crate::host::{Acceleration, RACK_PROGRAMS, check};
use crate::link::Link;
use crate::plan::{Ask, Event, Places, Plan, Say, Status};
use crate::server::Server;
use crate::server_image::{Contents, ServerImage};
use crate::supervisor::STAY;
use bixi_image::bundle::{self as image, Bundle};
use bixi_image::cache::Cache;
use bixi_image::host;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Flock, FlockType, Pid, Signal, fcntl_getlk};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// A supervisor that is told to end does so within this time, or is killed.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What a rack is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder all its files are in.
    pub state: PathBuf,
    /// Where downloads and images are kept between racks.
    pub cache: PathBuf,
    /// How many servers, 1 to 32.
    pub servers: usize,
    /// Memory of each, in MiB.
    pub memory_mib: u32,
    /// Processors of each.
    pub cpus: u32,
    /// The scratch disk of each, in GiB; its file is sparse.
    pub scratch_gib: u32,
    /// What the servers carry.
    pub contents: Contents,
    /// An image with cloud-init, for servers that are not to boot the rack's own system: the folder of its bundle, which has
    /// a kernel. Each starts from its disk as it is, and has the contents below `/opt`, binaries in `/opt/bin`.
    pub system: Option<PathBuf>,
    /// The `bixi-lab` program, which becomes the supervisor and the servers' agent.
    pub lab: PathBuf,
}

impl Config {
    /// Two servers with the binaries that lie beside `bixi-lab`; the cache is in the state folder, or where
    /// `BIXI_LAB_CACHE` says.
    ///
    /// # Errors
    /// When `bixi-lab` is not found.
    pub fn new(state: impl Into<PathBuf>) -> Result<Self> {
        let state = state.into();
        let lab = lab_program()?;
        let built = lab.parent().unwrap_or(Path::new("."));
        let ours = ["bixi-vmm", "bixi-storage", "bixi-network", "bixi-agent", "bixi-cloud", "bixi"];
        let binaries = ours.iter().map(|name| built.join(name)).filter(|p| p.exists()).collect();
        Ok(Self {
            cache: std::env::var_os("BIXI_LAB_CACHE")
                .map_or_else(|| state.join("cache"), Into::into),
            state,
            servers: 2,
            memory_mib: 1536,
            cpus: 2,
            scratch_gib: 8,
            contents: Contents { binaries, ..Contents::default() },
            system: None,
            lab,
        })
    }
}

/// The `bixi-lab` program: named by `BIXI_LAB`, this very program, or beside it.
fn lab_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BIXI_LAB") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().attempt(|| "find this program".to_owned())?;
    let name = "bixi-lab";
    if own.file_name().is_some_and(|n| n == name) {
        return Ok(own);
    }
    // Tests lie one folder below the programs.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|p| p.exists())
        .ok_or_else(|| Error::Unfit(format!("no {name} beside {}: build it first", own.display())))
}

/// A rack that is up.
#[derive(Debug)]
pub struct Rack {
    link: Link,
    servers: usize,
    /// The supervisor ends the rack when this closes; `None` when it was there before or is to stay.
    life_line: Option<ChildStdin>,
}

impl Rack {
    /// Brings a rack up; it ends when this value is dropped or this process ends in whatever way.
    ///
    /// # Errors
    /// When the machine is not fit for it, one is up already, or a server does not start.
    pub fn up(config: &Config) -> Result<Self> {
        check()?;
        if config.servers == 0 || config.servers > 32 {
            return Err(Error::Unfit(format!("{} servers: a rack has 1 to 32", config.servers)));
        }
        host::ensure_programs(RACK_PROGRAMS)?;
        let state = prepare_folder(&config.state)?;
        let guard = exclusive(&state)?;
        let places = Places::new(&state);
        if holder(&places).is_some() {
            return Err(Error::Up { state });
        }
        remove_rest(&places)?;
        let mut contents = config.contents.clone();
        if config.system.is_some() {
            contents.programs.append(&mut contents.binaries);
        }
        let cache = Cache::new(prepare_folder(&config.cache)?);
        let image = ServerImage::build(&cache, &config.lab, &contents)?;
        let acceleration = Acceleration::of_this_machine();
        host::say(&format!("starting {} servers, {}", config.servers, acceleration.name()));
        fs::create_dir_all(&places.folder).attempt(|| "make the rack's folder".to_owned())?;
        let boot = match &config.system {
            None => Boot::own(&places, &image)?,
            Some(bundle) => Boot::of(&places, &Bundle::open(bundle)?)?,
        };
        let disk = places.folder.join("programs.img");
        link(&image.disk, &disk)?;
        let plan = Plan {
            folder: places.folder.clone(),
            processor: acceleration.arguments().map(str::to_owned).to_vec(),
            acceleration: acceleration.name().to_owned(),
            kernel: boot.kernel,
            initrd: boot.initrd,
            command_line: boot.command_line,
            system: boot.system,
            disk,
            servers: config.servers,
            memory_mib: config.memory_mib,
            cpus: config.cpus,
            scratch_gib: config.scratch_gib,
        };
        let text = serde_json::to_vec_pretty(&plan)
            .map_err(|e| Error::Rack(format!("the plan does not encode: {e}")))?;
        fs::write(places.plan(), text).attempt(|| "write the rack's plan".to_owned())?;
        let life_line = start_supervisor(&config.lab, &places)?;
        drop(guard);
        Ok(Self { link: Link::new(state), servers: config.servers, life_line: Some(life_line) })
    }

    /// The rack that is up in a state folder.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(state: impl Into<PathBuf>) -> Result<Self> {
        let mut rack = Self { link: Link::new(state.into()), servers: 0, life_line: None };
        rack.servers = rack.status()?.servers.len();
        Ok(rack)
    }

    /// Lets the rack outlive this process.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub fn leave_up(mut self) -> Result<()> {
        match self.life_line.take() {
            Some(mut line) => {
                line.write_all(&[STAY]).attempt(|| "tell the supervisor to stay".to_owned())
            }
            None => Ok(()),
        }
    }

    /// How the rack is.
    ///
    /// # Errors
    /// When the supervisor does not answer.
    pub fn status(&self) -> Result<Status> {
        match self.link.ask(&Ask::Status)? {
            (Say::Status(status), _) => Ok(status),
            (other, _) => Err(Error::Rack(format!("unexpected answer {other:?}"))),
        }
    }

    /// A server, counted from 1. One that is not there is an error at its first use.
    #[must_use]
    pub fn server(&self, number: usize) -> Server {
        Server::new(number, self.link.clone())
    }

    /// All servers.
    #[must_use]
    pub fn servers(&self) -> Vec<Server> {
        (1..=self.servers).map(|number| self.server(number)).collect()
    }

    /// Ends what tests have left in the servers; a server that does not answer is started anew.
    ///
    /// # Errors
    /// When a server cannot be made usable again.
    pub fn reset(&self) -> Result<()> {
        for server in self.servers() {
            if let Err(error) = server.reset() {
                host::say(&format!("{error}: starting it anew"));
                self.restart(server.number())?;
            }
        }
        Ok(())
    }

    /// Cuts a server's power and starts it again with an empty scratch disk.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&self, server: usize) -> Result<()> {
        self.link.ask(&Ask::Restart { server }).map(drop)
    }

    /// The state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.link.state
    }

    /// Ends the rack of a state folder and removes its files; whether there was one.
    ///
    /// # Errors
    /// When it cannot be ended or files cannot be removed.
    pub fn down(state: &Path) -> Result<bool> {
        if !state.is_dir() {
            return Ok(false);
        }
        let _guard = exclusive(state)?;
        let places = Places::new(state);
        let was_up = holder(&places).is_some();
        if was_up {
            // One that does not answer is killed below; the kernel then ends its servers and frees its network.
            let _ = Link::new(state.to_owned()).ask_within(&Ask::Down, END_LIMIT);
            let deadline = Instant::now() + END_LIMIT;
            while let Some(pid) = holder(&places) {
                if Instant::now() > deadline {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
                if Instant::now() > deadline + END_LIMIT {
                    return Err(Error::Rack(format!(
                        "process {pid} does not end",
                        pid = pid.as_raw_nonzero()
                    )));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        remove_rest(&places)?;
        Ok(was_up)
    }

    /// The process that holds the rack of a state folder, if one is up.
    #[must_use]
    pub fn supervisor(state: &Path) -> Option<i32> {
        holder(&Places::new(state)).map(|pid| pid.as_raw_nonzero().get())
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        if self.life_line.take().is_some() {
            // Asked and waited for, so that the next rack in this folder finds it free. If that fails, the closed life
            // line still ends it.
            let _ = Self::down(&self.link.state);
        }
    }
}

fn prepare_folder(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)
        .and_then(|()| folder.canonicalize())
        .attempt(|| format!("make {}", folder.display()))
}

/// What the servers boot, under names of the rack's own: the cache may forget its entries while the rack is up.
struct Boot {
    kernel: PathBuf,
    initrd: PathBuf,
    command_line: String,
    system: Option<PathBuf>,
}

impl Boot {
    /// The rack's own system, in memory.
    fn own(places: &Places, image: &ServerImage) -> Result<Self> {
        let (kernel, initrd) = (places.folder.join("kernel"), places.folder.join("initrd"));
        image.join(&initrd)?;
        link(&image.kernel, &kernel)?;
        let command_line = "console=ttyS0 quiet panic=-1".to_owned();
        Ok(Self { kernel, initrd, command_line, system: None })
    }

    /// The system of an image.
    fn of(places: &Places, bundle: &Bundle) -> Result<Self> {
        let manifest = &bundle.manifest;
        let (image::Boot::Direct { kernel, initrd, command_line }, Some(disk)) =
            (&manifest.boot, &manifest.disk)
        else {
            let folder = bundle.folder.display();
            return Err(Error::Unfit(format!("{folder} has no kernel and disk for a server")));
        };
        let own = |name: &str| {
            let path = places.folder.join(name);
            link(&bundle.path(name), &path).map(|()| path)
        };
        Ok(Self {
            kernel: own(kernel)?,
            initrd: own(initrd)?,
            command_line: command_line.clone(),
            system: Some(own(&disk.file)?),
        })
    }
}

/// Gives a file a second name; on another file system, a copy.
fn link(file: &Path, name: &Path) -> Result<()> {
    fs::hard_link(file, name)
        .or_else(|_| fs::copy(file, name).map(drop))
        .attempt(|| format!("make {}", name.display()))
}

/// One `up` or `down` at a time in a state folder.
fn exclusive(state: &Path) -> Result<fs::File> {
    let path = state.join("turn");
    let file = fs::File::create(&path).attempt(|| format!("make {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive).attempt(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// The supervisor's process, as the kernel knows it from its lock: no stale number can be taken for it.
fn holder(places: &Places) -> Option<Pid> {
    let file = fs::File::options().read(true).write(true).open(places.lock()).ok()?;
    fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok()??.pid
}

/// Removes what an earlier rack has left, which has ended.
fn remove_rest(places: &Places) -> Result<()> {
    match fs::remove_dir_all(&places.folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).attempt(|| format!("remove {}", places.folder.display()))
        }
        _ => Ok(()),
    }
}

/// Starts the supervisor and follows it until all servers are up.
fn start_supervisor(lab: &Path, places: &Places) -> Result<ChildStdin> {
    let log = fs::File::create(places.log()).attempt(|| "write the supervisor's log".to_owned())?;
    let mut child = Command::new(lab)
        .arg("supervise")
        .arg(places.plan())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .attempt(|| format!("start {}", lab.display()))?;
    let life_line = child.stdin.take();
    let events = child.stdout.take();
    // What was started only enters the namespaces and ends.
    let status = child.wait().attempt(|| "start the supervisor".to_owned())?;
    let (Some(life_line), Some(events)) = (life_line, events) else {
        return Err(Error::Rack("the supervisor has no pipes".to_owned()));
    };
    for line in BufReader::new(events).lines().map_while(std::io::Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Event::Up { server, seconds }) => {
                host::say(&format!("server-{server} is up after {seconds:.1} s"));
            }
            Ok(Event::Ready) => return Ok(life_line),
            Ok(Event::Failed { message }) => return Err(Error::Rack(message)),
            Err(e) => return Err(Error::Rack(format!("the supervisor said {line:?}: {e}"))),
        }
    }
    let said = fs::read_to_string(places.log()).unwrap_or_default();
    Err(Error::Rack(format!("the supervisor ended ({status}): {}", host::tail(&said))))
}
