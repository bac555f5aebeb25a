//! `bixi release` on a machine that is a directory.

use crate::rig::User;
use bixi_release::bundle::{About, Source, make};
use bixi_release::key::PrivateKey;
use bixi_release::manifest::Mode;
use std::fs;
use std::path::{Path, PathBuf};

/// A bundle of one program.
fn bundle(folder: &Path, version: &str, key: &PrivateKey) -> PathBuf {
    let file = folder.join("program");
    fs::write(&file, format!("#!/bin/sh\necho {version}\n")).unwrap();
    let source = Source { path: "bin/bixi".to_owned(), mode: Mode::Program, file };
    let architecture = std::env::consts::ARCH.to_owned();
    let about = About { version: version.to_owned(), architecture, commit: None };
    make(&about, &[source], key, folder).unwrap()
}

pub fn releases() {
    let user = User::new();
    let folder = user.home.path();
    let root = format!("--root {}", folder.join("machine").display());
    let key = PrivateKey::generate("builds").unwrap();
    let public = folder.join("builds.pub");
    fs::write(&public, key.public().to_string()).unwrap();
    let (one, two) = (bundle(folder, "1.0.0", &key), bundle(folder, "2.0.0", &key));
    let (one, two, public) = (one.display(), two.display(), public.display());
    assert_eq!(user.bixi(&format!("release list {root} -o json")).json().as_array(), Some(&vec![]));
    user.bixi(&format!("release install {one} {root}")).bad(1, "--trust FILE");
    user.bixi(&format!("release verify {one} {root}")).bad(1, "not trusted");
    user.bixi(&format!("release verify {one} {root} --key {public}")).good();
    let installed = user.bixi(&format!("release install {one} {root} --trust {public} -o json"));
    assert_eq!(installed.json()["key"], "builds");
    user.bixi(&format!("release install {two} {root}")).good();
    let list = user.bixi(&format!("release list {root} -o json")).json();
    assert!(list[0]["version"] == "1.0.0" && list[0]["current"] == false, "{list}");
    assert!(list[1]["version"] == "2.0.0" && list[1]["current"] == true, "{list}");
    assert_eq!(user.bixi(&format!("release list {root} -o name")).good(), "1.0.0\n2.0.0\n");
    user.bixi(&format!("release verify 1.0.0 {root}")).good();
    let program = folder.join("machine/usr/lib/bixi/1.0.0/bin/bixi");
    fs::write(program, "#!/bin/sh\necho 1.0.1\n").unwrap();
    user.bixi(&format!("release verify 1.0.0 {root}")).bad(1, "is not what was signed");
    user.bixi(&format!("release remove 2.0.0 {root}")).bad(1, "in use");
    user.bixi(&format!("release remove 1.0.0 {root}")).good();
    user.bixi(&format!("release remove 1.0.0 {root}")).bad(3, "not installed");
}
