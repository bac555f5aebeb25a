//! Services of this machine: the units that a release brings, linked into systemd, with settings of this machine.
//!
//! All is done by `systemctl`; what it says is told when it fails. The units stay where the release is, and their settings are
//! in `/etc/bixi`, so that a release that is installed later brings its own units along.

use crate::failure::Failure;
use crate::output::printable;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::process::Command;

/// How long a service may take until it does what it is for.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);
/// Where the units are, whichever release is in use.
const UNITS: &str = "/usr/lib/bixi/current/units";
/// Where links to units, and what is added to them, go.
const OWN: &str = "/etc/systemd/system";

/// Whether systemd runs this machine; that it is not used is said, unless `refused` says that it was not to be.
pub fn is_wanted(refused: bool) -> bool {
    let here = Path::new("/run/systemd/system").is_dir();
    if !here && !refused {
        eprintln!("systemd does not run this machine: no service is made.");
    }
    here && !refused
}

/// The file of a unit, or of what else a release has for systemd.
pub fn file(name: &str) -> Result<PathBuf, Failure> {
    let path = Path::new(UNITS).join(name);
    match path.exists() {
        true => Ok(path),
        false => Err(Failure::Failed(format!(
            "{} is not there, since no release is installed: install one by `bixi release install FILE`, \
             or do without a service by --no-service",
            path.display()
        ))),
    }
}

/// Settings of a unit: one variable with the arguments of its program.
#[derive(Debug)]
pub struct Settings {
    /// The file.
    pub path: &'static str,
    /// The variable.
    pub variable: &'static str,
}

impl Settings {
    fn text(&self, arguments: &[String]) -> Result<String, Failure> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/=,@+[]~".contains(c);
        if let Some(bad) = arguments.iter().find(|word| !word.chars().all(plain)) {
            return Err(Failure::Usage(format!(
                "{bad:?} cannot be an argument of a service: it has more than letters, digits and ._-:/=,@+[]~"
            )));
        }
        let (variable, words) = (self.variable, arguments.join(" "));
        Ok(format!(
            "# Written by bixi. After a change: systemctl restart\n{variable}=\"{words}\"\n"
        ))
    }

    /// Writes the settings.
    pub fn write(&self, arguments: &[String]) -> Result<(), Failure> {
        put(Path::new(self.path), &self.text(arguments)?)
    }
}

/// What a unit needs beside its settings, in a file of its own.
pub fn add(unit: &str, name: &str, text: Option<&str>) -> Result<(), Failure> {
    let path = Path::new(OWN).join(format!("{unit}.d")).join(name);
    match text {
        Some(text) => put(&path, text),
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => {
                removed.map_err(|e| Failure::system(format!("remove {}", path.display()), e))
            }
        },
    }
}

/// Puts a file there whole, readable by all.
fn put(path: &Path, text: &str) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let written = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        fs::File::open(folder)?.sync_all()
    };
    written().map_err(|e| Failure::system(format!("write {}", path.display()), e))
}

/// Runs a program to its end; what it printed.
pub async fn run(program: &str, words: &[&str]) -> Result<String, Failure> {
    let line = format!("{program} {}", words.join(" "));
    let output = Command::new(program).args(words).output().await;
    let output = output.map_err(|e| Failure::system(format!("run `{line}`"), e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = printable(String::from_utf8_lossy(&output.stderr).trim());
    Err(Failure::Failed(format!("`{line}` failed ({}): {said}", output.status)))
}

/// Makes systemd know a unit that others need.
pub async fn link(unit: &str) -> Result<(), Failure> {
    let file = file(unit)?.display().to_string();
    run("systemctl", &["link", &file]).await.map(drop)
}

/// Makes systemd know a unit, start it now and whenever this machine starts. One that runs with other arguments than these,
/// whenever those were written, is started again.
pub async fn start(unit: &str, arguments: &[String]) -> Result<(), Failure> {
    let file = file(unit)?.display().to_string();
    run("systemctl", &["enable", &file]).await?;
    run("systemctl", &["daemon-reload"]).await?;
    let pid = run("systemctl", &["show", "--property=MainPID", "--value", unit]).await?;
    let line = fs::read(format!("/proc/{}/cmdline", pid.trim()));
    let verb = match line {
        Ok(line) if !ends_with(&line, arguments) => "restart",
        _ => "start",
    };
    run("systemctl", &[verb, unit]).await.map(drop)
}

/// Whether the command line of a process, as the kernel tells it, ends with these arguments.
fn ends_with(line: &[u8], arguments: &[String]) -> bool {
    let end: Vec<u8> =
        arguments.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
    line.ends_with(&end)
}

/// Waits until `done` says that the service does what it is for.
pub async fn wait<T>(
    unit: &str,
    mut done: impl AsyncFnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let begun = Instant::now();
    loop {
        let state = state(unit).await?;
        if matches!(state, State::Ended) {
            let said = journal(unit).await;
            return Err(Failure::Failed(format!("{unit} does not stay up; it says:\n{said}")));
        }
        let lacks = match done().await {
            Ok(done) if matches!(state, State::Up) => return Ok(done),
            Ok(_) => "it is starting".to_owned(),
            Err(failure) => failure.to_string(),
        };
        if begun.elapsed() > PATIENCE {
            let said = journal(unit).await;
            return Err(Failure::Timeout(format!(
                "{unit} is not ready: {lacks}; it says:\n{said}"
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The state of a unit, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Up,
    Starting,
    Ended,
}

async fn state(unit: &str) -> Result<State, Failure> {
    let words = ["show", "--property=ActiveState", "--property=SubState", unit];
    Ok(read_state(&run("systemctl", &words).await?))
}

fn read_state(text: &str) -> State {
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    match (value("ActiveState"), value("SubState")) {
        ("active", _) => State::Up,
        // It has ended, and systemd is about to try again.
        (_, "auto-restart") | ("failed" | "inactive", _) => State::Ended,
        _ => State::Starting,
    }
}

/// What a service has said last.
async fn journal(unit: &str) -> String {
    let words = ["--unit", unit, "--lines=8", "--output=cat", "--no-pager"];
    run("journalctl", &words).await.unwrap_or_else(|failure| failure.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { path: "", variable: "BIXI_X" };

    #[test]
    fn settings_are_one_variable_without_anything_that_systemd_would_read() {
        let words = ["--listen=[::]:7443".to_owned(), "--name=a.example".to_owned()];
        let text = SETTINGS.text(&words).unwrap();
        assert!(text.ends_with("\nBIXI_X=\"--listen=[::]:7443 --name=a.example\"\n"), "{text}");
        for bad in ["a b", "a\"b", "$HOME", "a\\b", "a'b", "a\nB=c", "%h", "\u{e9}"] {
            assert!(SETTINGS.text(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_file_is_replaced_and_readable_by_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etc/x.env");
        put(&path, "a\n").unwrap();
        put(&path, "b\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn a_process_is_known_by_the_end_of_its_command_line() {
        let words = ["--a=1".to_owned(), "--b".to_owned()];
        assert!(ends_with(b"/bin/x\0serve\0--a=1\0--b\0", &words));
        assert!(!ends_with(b"/bin/x\0serve\0--a=1\0--bc\0", &words));
        assert!(!ends_with(b"/bin/x\0serve\0--b\0", &words));
    }

    #[test]
    fn states_are_read() {
        let read = |active, sub| read_state(&format!("ActiveState={active}\nSubState={sub}\n"));
        assert_eq!(read("active", "running"), State::Up);
        assert_eq!(read("activating", "start"), State::Starting);
        assert_eq!(read("activating", "auto-restart"), State::Ended);
        assert_eq!(read("failed", "failed"), State::Ended);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_a_program_says_is_told_when_it_fails() {
        assert_eq!(run("sh", &["-c", "echo good"]).await.unwrap(), "good\n");
        let failed = run("sh", &["-c", "echo bad >&2; exit 3"]).await.unwrap_err().to_string();
        assert!(failed.contains("exit status: 3") && failed.contains("bad"), "{failed}");
    }
}
