//! Installations that go well, are refused, and die.

use super::steps::Step;
use super::*;
use crate::bundle::tests::{bundle, trust};
use crate::key::PrivateKey;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

/// Says to a copy of this test program what its part is.
const PART: &str = "BIXI_RELEASE_TEST_PART";

fn install(releases: &Releases, path: &Path, key: &PrivateKey) -> Result<Outcome> {
    releases.install(File::open(path).unwrap(), &trust(key))
}

fn says(root: &Path) -> String {
    let output = Command::new(root.join("usr/bin/bixi")).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_release_is_installed_verified_replaced_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let releases = Releases::of(root.path());
    let one = bundle("1.0.0", "one", None);
    let two = bundle("2.0.0", "two", None);
    assert!(!install(&releases, &one.path, &one.key).unwrap().was_there);
    assert_eq!(says(root.path()), "one");
    assert!(install(&releases, &one.path, &one.key).unwrap().was_there);
    install(&releases, &two.path, &two.key).unwrap();
    assert_eq!(says(root.path()), "two");
    let list = releases.list().unwrap();
    let short: Vec<_> = list.iter().map(|one| (one.version.as_str(), one.current)).collect();
    assert_eq!(short, [("1.0.0", false), ("2.0.0", true)]);
    assert!(list[0].manifest.is_some());
    releases.verify("1.0.0", &trust(&one.key)).unwrap();
    assert!(releases.verify("1.0.0", &trust(&two.key)).is_err());
    assert!(releases.remove("2.0.0").unwrap_err().to_string().contains("in use"));
    releases.remove("1.0.0").unwrap();
    assert!(matches!(releases.remove("1.0.0"), Err(ReleaseError::NotInstalled(_))));
    assert!(matches!(releases.remove("../bixi"), Err(ReleaseError::NotInstalled(_))));
    assert_eq!(names(&releases.directory()).unwrap(), [".lock", "2.0.0", "current"]);
}

#[test]
fn the_same_version_with_other_content_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let releases = Releases::of(root.path());
    let one = bundle("1.0.0", "one", None);
    install(&releases, &one.path, &one.key).unwrap();
    let other = bundle("1.0.0", "other", Some(one.key));
    let refused = install(&releases, &other.path, &other.key).unwrap_err().to_string();
    assert!(refused.contains("a version never changes"), "{refused}");
    assert_eq!(says(root.path()), "one");
}

#[test]
fn what_was_changed_on_the_machine_is_seen() {
    let root = tempfile::tempdir().unwrap();
    let releases = Releases::of(root.path());
    let one = bundle("1.0.0", "one", None);
    install(&releases, &one.path, &one.key).unwrap();
    let verify = || releases.verify("1.0.0", &trust(&one.key)).unwrap_err().to_string();
    let program = releases.place("1.0.0").join("bin/bixi");
    let good = fs::read(&program).unwrap();
    fs::write(&program, b"#!/bin/sh\necho two\n").unwrap();
    assert!(verify().contains("is not what was signed"));
    let refused = install(&releases, &one.path, &one.key).unwrap_err().to_string();
    assert!(refused.contains("then install it again"), "{refused}");
    fs::write(&program, good).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    assert!(verify().contains("no file of mode 755"));
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let more = releases.place("1.0.0").join("bin/more");
    fs::write(&more, b"").unwrap();
    assert!(verify().contains("more is not of the release"));
    fs::remove_file(more).unwrap();
    releases.verify("1.0.0", &trust(&one.key)).unwrap();
}

#[test]
fn a_file_of_others_is_not_overwritten() {
    let root = tempfile::tempdir().unwrap();
    let releases = Releases::of(root.path());
    let one = bundle("1.0.0", "one", None);
    make_directory(&releases.programs()).unwrap();
    let own = releases.programs().join("bixi");
    fs::write(&own, b"mine").unwrap();
    let refused = install(&releases, &one.path, &one.key).unwrap_err().to_string();
    assert!(refused.contains("move it away"), "{refused}");
    assert_eq!(fs::read(&own).unwrap(), b"mine");
    assert!(!releases.directory().exists(), "something was installed");
    fs::remove_file(&own).unwrap();
    symlink("/bin/true", &own).unwrap();
    assert!(install(&releases, &one.path, &one.key).is_err(), "a link of others");
}

#[test]
fn keys_are_stored_once() {
    let root = tempfile::tempdir().unwrap();
    let releases = Releases::of(root.path());
    let (one, two) =
        (PrivateKey::generate("builds").unwrap(), PrivateKey::generate("builds").unwrap());
    releases.trust(one.public()).unwrap();
    releases.trust(one.public()).unwrap();
    assert!(releases.trust(two.public()).unwrap_err().to_string().contains("another key"));
    let made = bundle("1.0.0", "one", Some(one));
    let trusted = releases.trusted().unwrap();
    releases.install(File::open(&made.path).unwrap(), &trusted).unwrap();
    let foreign = bundle("1.0.1", "x", Some(two));
    let refused = releases.install(File::open(&foreign.path).unwrap(), &trusted).unwrap_err();
    assert!(matches!(refused, ReleaseError::Untrusted { .. }), "{refused}");
}

#[test]
fn an_error_at_any_step_leaves_nothing_half() {
    let (one, two) = (bundle("1.0.0", "one", None), bundle("2.0.0", "two", None));
    for step in [Step::Begun, Step::File, Step::Written] {
        let root = tempfile::tempdir().unwrap();
        let releases = Releases::of(root.path());
        install(&releases, &one.path, &one.key).unwrap();
        let mut full = |at| match at == step {
            true => Err(system("write", Path::new("x"))(io::ErrorKind::StorageFull.into())),
            false => Ok(()),
        };
        let bundle = File::open(&two.path).unwrap();
        let refused = releases.install_by_steps(bundle, &trust(&two.key), &mut full).unwrap_err();
        assert!(refused.to_string().contains("make room"), "{refused}");
        assert_eq!(says(root.path()), "one");
        assert_eq!(names(&releases.directory()).unwrap(), [".lock", "1.0.0", "current"]);
    }
}

/// Dies where the environment says; who asks for ignored tests, too, asks for no child.
#[test]
#[ignore = "the child of a test"]
fn dies_where_it_is_told() {
    let Ok(told) = std::env::var(PART) else { return };
    let [step, root, path, key] = told.split(',').collect::<Vec<_>>()[..] else { return };
    let key = PrivateKey::read(Path::new(key)).unwrap();
    let mut left: usize = step.parse().unwrap();
    let mut die = |_| {
        left -= 1;
        match left {
            0 => std::process::abort(),
            _ => Ok(()),
        }
    };
    let bundle = File::open(path).unwrap();
    let _ = Releases::of(Path::new(root)).install_by_steps(bundle, &trust(&key), &mut die);
}

#[test]
fn killed_after_any_step_the_old_or_the_new_is_in_use_and_the_next_one_cleans_up() {
    let key = PrivateKey::generate("k").unwrap();
    let one = bundle("1.0.0", "one", Some(key));
    let pem = one.folder.path().join("k.pem");
    one.key.write(&pem).unwrap();
    let two = bundle("2.0.0", "two", Some(PrivateKey::read(&pem).unwrap()));
    // Begun, three files, written, named, switched, linked.
    let steps = 8;
    for step in 1..=steps {
        let root = tempfile::tempdir().unwrap();
        let releases = Releases::of(root.path());
        install(&releases, &one.path, &one.key).unwrap();
        let told = [root.path(), &two.path, &pem].map(|path| path.display().to_string()).join(",");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "install::tests::dies_where_it_is_told", "--ignored"])
            .env(PART, format!("{step},{told}"))
            .output()
            .unwrap();
        assert_eq!(output.status.signal(), Some(6), "it did not die at step {step}: {output:?}");
        let expected = if step < steps - 1 { "one" } else { "two" };
        assert_eq!(says(root.path()), expected, "after step {step}");
        for one in releases.list().unwrap() {
            releases.verify(&one.version, &trust(&two.key)).unwrap();
        }
        install(&releases, &two.path, &two.key).unwrap();
        assert_eq!(says(root.path()), "two");
        assert_eq!(names(&releases.directory()).unwrap(), [".lock", "1.0.0", "2.0.0", "current"]);
    }
}

/// Installs in a small file system; who asks for ignored tests, too, asks for no child.
#[test]
#[ignore = "the child of a test"]
fn fills_the_disk() {
    let Ok(told) = std::env::var(PART) else { return };
    let [root, small, large, key] = told.split(',').collect::<Vec<_>>()[..] else { return };
    let key = PrivateKey::read(Path::new(key)).unwrap();
    let releases = Releases::of(Path::new(root));
    install(&releases, Path::new(small), &key).unwrap();
    let refused = install(&releases, Path::new(large), &key).unwrap_err().to_string();
    assert!(refused.contains("bin/bixi-agent") && refused.contains("make room"), "{refused}");
    assert_eq!(says(Path::new(root)), "one");
    assert_eq!(names(&releases.directory()).unwrap(), [".lock", "1.0.0", "current"]);
}

#[test]
fn a_full_disk_is_told_and_nothing_half_stays() {
    let one = bundle("1.0.0", "one", None);
    let pem = one.folder.path().join("k.pem");
    one.key.write(&pem).unwrap();
    let two = bundle("2.0.0", &"x".repeat(1000), Some(PrivateKey::read(&pem).unwrap()));
    let root = tempfile::tempdir().unwrap();
    let mut inside = Command::new("unshare");
    let mount = "mount -t tmpfs -o size=300k none \"$1\" || exit 77; shift; exec \"$@\"";
    inside.args(["--mount", "sh", "-c", mount, "sh"]).arg(root.path());
    inside.arg(std::env::current_exe().unwrap());
    inside.args(["--exact", "install::tests::fills_the_disk", "--ignored"]);
    let told = [root.path(), &one.path, &two.path, &pem];
    inside.env(PART, told.map(|path| path.display().to_string()).join(","));
    let output = inside.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if !said.contains("running 1 test") {
        println!("SKIPPED: no file system can be mounted: {output:?}");
        return;
    }
    assert!(output.status.success(), "{output:?}");
}
