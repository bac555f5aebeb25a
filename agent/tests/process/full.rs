//! A server's file systems that are full: what cannot be done is told and done later, and what runs goes on.

use crate::guest::ECHO;
use crate::rig::Rig;
use bixi_api::agent::{InstanceState, Power};
use bixi_api::error::ApiError;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

/// A file system of 48 MiB at one of the agent's folders.
struct Small(PathBuf);

impl Small {
    /// Makes it; what is in the folder already is moved to it.
    fn at(rig: &Rig, name: &str) -> Self {
        let (path, before) = (rig.path(name), rig.path("before"));
        fs::create_dir_all(&path).unwrap();
        fs::rename(&path, &before).unwrap();
        fs::create_dir(&path).unwrap();
        mount("none", &path, "tmpfs", MountFlags::empty(), Some(c"size=48m")).unwrap();
        let small = Self(path);
        for entry in fs::read_dir(&before).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), small.0.join(entry.file_name())).unwrap();
        }
        fs::remove_dir_all(before).unwrap();
        small
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Leaves not a byte.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        for piece in [1 << 16, 1 << 12, 1] {
            let error = loop {
                if let Err(error) = file.write_all(&vec![0; piece]) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull);
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // The rig's processes may still be in it; its folder is removed after them.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn error(rig: &Rig) -> ApiError {
    rig.cloud.wait("an error", |report| report.instances.first()?.error.clone())
}

#[test]
fn without_room_for_images_or_disks_it_waits_and_says_why() {
    for folder in ["state", "disks"] {
        let Some(mut rig) = Rig::new() else { return };
        let small = Small::at(&rig, folder);
        rig.start(None);
        rig.cloud.wait("a first report", |_| Some(()));
        small.fill();
        rig.desire(&rig.instance(ECHO));
        let told = error(&rig);
        assert_eq!(told.code, "NoSpace", "{folder}: {told}");
        assert!(rig.vmms().is_empty());
        small.make_room();
        assert_eq!(rig.wait_state(InstanceState::Running).error, None, "{folder}");
        rig.one_vmm();
    }
}

#[test]
fn what_runs_goes_on_and_can_be_stopped() {
    let Some(mut rig) = Rig::new() else { return };
    let small = Small::at(&rig, "state");
    rig.start(None);
    let mut wanted = rig.instance(ECHO);
    rig.desire(&wanted);
    rig.wait_state(InstanceState::Running);
    let vmm = rig.one_vmm();
    small.fill();
    // An agent that is killed comes back without a byte to write to.
    rig.kill();
    rig.cloud.forget_report();
    rig.start(None);
    rig.cloud.wait("a report", |_| Some(()));
    assert_eq!(rig.one_vmm(), vmm);
    wanted.power = Power::Stopped;
    rig.desire(&wanted);
    // A stop needs no room; to write down how it ended does.
    let told = error(&rig);
    assert_eq!(told.code, "NoSpace", "{told}");
    small.make_room();
    assert_eq!(rig.wait_state(InstanceState::Stopped).error, None);
    assert!(rig.vmms().is_empty());
}
