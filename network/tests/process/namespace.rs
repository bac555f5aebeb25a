//! Network namespaces: two servers that a cable connects.

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Two namespaces with a cable between: 192.0.2.1, 2001:db8::1 and 192.0.2.2, 2001:db8::2 on
/// `under0`. Gone when dropped.
pub struct Cable {
    names: [String; 2],
}

/// Runs a command; what it said if it failed.
pub fn run(command: &str) -> Result<String, String> {
    let mut words = command.split_whitespace();
    let mut child = Command::new(words.next().unwrap());
    let output = child.args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{command}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Cable {
    /// Makes the namespaces; or says why not, and the test is to be skipped.
    pub fn lay(test: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cable = Self { names: ["a", "b"].map(|side| format!("bixi-{tag}-{side}")) };
        match cable.make() {
            Ok(()) => Some(cable),
            Err(reason) => {
                println!("skipped {test}: no network namespaces here ({reason})");
                None
            }
        }
    }

    fn make(&self) -> Result<(), String> {
        let [a, b] = &self.names;
        run(&format!("ip netns add {a}"))?;
        run(&format!("ip netns add {b}"))?;
        run(&format!("ip -n {a} link add under0 type veth peer name under0 netns {b}"))?;
        for (side, name) in (1..).zip(&self.names) {
            run(&format!("ip -n {name} addr add 192.0.2.{side}/24 dev under0"))?;
            // Without duplicate address detection it can be used at once.
            run(&format!("ip -n {name} addr add 2001:db8::{side}/64 dev under0 nodad"))?;
            run(&format!("ip -n {name} link set under0 up"))?;
            run(&format!("ip -n {name} link set lo up"))?;
        }
        Ok(())
    }

    /// The name of a side, 0 or 1.
    pub fn side(&self, side: usize) -> &str {
        &self.names[side]
    }

    /// Runs `ip` in a side.
    pub fn ip(&self, side: usize, arguments: &str) -> Result<String, String> {
        run(&format!("ip -n {} {arguments}", self.names[side]))
    }

    /// Does something in a side, in a thread that has moved there.
    pub fn within<T: Send>(&self, side: usize, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.names[side])).unwrap();
        std::thread::scope(|scope| {
            let moved = scope.spawn(|| {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind)
                    .unwrap();
                work()
            });
            moved.join().unwrap()
        })
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = run(&format!("ip netns del {name}"));
        }
    }
}
