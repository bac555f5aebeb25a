//! A user with a home of its own, and a cloud that it has made.

use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a command has answered.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Answer {
    /// The standard output of a command that has succeeded.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:#?}");
        self.out
    }

    /// The same, as JSON.
    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.good()).unwrap()
    }

    /// A failure with this exit status that says this.
    #[track_caller]
    pub fn bad(self, code: i32, words: &str) {
        assert!(self.code == code && self.err.contains(words), "not {code} {words}: {self:#?}");
    }
}

/// A user.
pub struct User {
    pub home: TempDir,
}

impl User {
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    pub fn profiles(&self) -> PathBuf {
        self.home.path().join(".config/bixi/profiles.json")
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bixi"));
        command.args(line.split_whitespace()).stdin(Stdio::null());
        command.env_clear().env("HOME", self.home.path());
        command
    }

    /// Runs `bixi` with the words of `line`.
    pub fn bixi(&self, line: &str) -> Answer {
        self.run(&mut self.command(line))
    }

    pub fn run(&self, command: &mut Command) -> Answer {
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap();
        Answer { code, out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A cloud in a process of its own, made by `bixi cloud init`.
pub struct Cloud {
    pub user: User,
    child: Child,
}

impl Cloud {
    pub fn start() -> Self {
        let user = User::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen = format!("127.0.0.1:{port}");
        let state = user.home.path().join("cloud");
        let this = std::env::current_exe().unwrap();
        let init = format!(
            "cloud init --no-service --state {} --listen {listen} --program {}",
            state.display(),
            this.display()
        );
        let made = user.bixi(&init);
        assert!(made.code == 0 && made.err.contains("serve --state="), "{made:#?}");
        let before = std::fs::read(user.profiles()).unwrap();
        user.bixi(&init).good();
        let after = std::fs::read(user.profiles()).unwrap();
        assert_eq!(before, after, "a second init has changed the profile");
        let mut command = Command::new(this);
        command.arg("serve").arg("--state").arg(&state).args(["--listen", &listen]);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let cloud = Self { user, child: command.spawn().unwrap() };
        cloud.until("the cloud answers", |cloud| cloud.user.bixi("server list").code == 0);
        cloud
    }

    pub fn bixi(&self, line: &str) -> Answer {
        self.user.bixi(line)
    }

    #[track_caller]
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < PATIENCE, "{what}: not seen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A file of the user.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.user.home.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program of ours was built beside `bixi`.
pub fn built(program: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_bixi")).with_file_name(program);
    path.exists().then_some(path)
}
