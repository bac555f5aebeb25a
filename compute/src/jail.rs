//! The last steps into the jail, which only the jailed process itself can take.
//!
//! The starter has made the namespaces and a root that is empty but for the directory of this VM's card sockets, and has
//! handed in every file. What is left is to be done after the program and its libraries are loaded, since there is none
//! of them behind the door: change the root, become the VM's own user, give up every capability.
//!
//! Called by `command` before the configuration is read: no foreign byte has been seen until then.

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, fchdir, pivot_root};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::os::fd::{FromRawFd, OwnedFd};
use std::str::FromStr;

/// `ROOT:UID`: the descriptor of the new root, and the user and group to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jail {
    root: i32,
    id: u32,
}

/// The jail cannot be entered.
#[derive(Debug, thiserror::Error)]
#[error("cannot enter the jail: cannot {step}: the VM's starter must be root")]
pub struct JailError {
    step: &'static str,
    source: rustix::io::Errno,
}

fn failed(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> JailError {
    move |source| JailError { step, source }
}

impl FromStr for Jail {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split_once(':')
            .and_then(|(root, id)| Some(Self { root: root.parse().ok()?, id: id.parse().ok()? }));
        parts.filter(|jail| jail.root > 2 && jail.id != 0 && jail.id != u32::MAX).ok_or_else(|| {
            format!("`{text}` is not ROOT:UID with a descriptor and a user beside root")
        })
    }
}

impl Jail {
    /// Enters, for ever.
    ///
    /// # Errors
    /// The descriptor is no mounted directory, or the kernel refuses.
    pub fn enter(self) -> Result<(), JailError> {
        // Kernels before 6.4 tell the page size by /proc only, which is out of reach soon. It is asked once in a process.
        let _ = rustix::param::page_size();
        change_root(self.root)?;
        drop_bounding_set()?;
        become_user(self.id)?;
        let nothing = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, nothing).map_err(failed("drop capabilities"))?;
        rustix::thread::set_no_new_privs(true).map_err(failed("forbid new privileges"))
    }
}

/// Makes the directory behind `root` the root, and lets go of what was there before.
fn change_root(root: i32) -> Result<(), JailError> {
    // SAFETY: the starter gives this number for this one use; nothing is opened before it.
    let root = unsafe { OwnedFd::from_raw_fd(root) };
    fchdir(&root).map_err(failed("go to the new root"))?;
    // The old root comes to lie over the new one, in the same place, and is taken off it.
    pivot_root(c".", c".").map_err(failed("change the root"))?;
    unmount(c".", UnmountFlags::DETACH).map_err(failed("leave the old root"))?;
    chdir(c"/").map_err(failed("go to the root"))
}

fn drop_bounding_set() -> Result<(), JailError> {
    for capability in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A kernel older than the list.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(failed("drop capabilities")(error)),
        }
    }
    Ok(())
}

/// There is one thread yet, so the calls that act on a thread act on the process.
fn become_user(id: u32) -> Result<(), JailError> {
    let (uid, gid) = (rustix::process::Uid::from_raw(id), rustix::process::Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[]).map_err(failed("leave the groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("become the VM's group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("become the VM's user"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jail_names_a_descriptor_and_a_user_beside_root() {
        assert_eq!("9:20001".parse(), Ok(Jail { root: 9, id: 20001 }));
        for text in ["", "9", "9:", "9:0", "2:7", "-1:7", "9:4294967295", "x:7"] {
            assert!(text.parse::<Jail>().is_err(), "{text}");
        }
    }
}
