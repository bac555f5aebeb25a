//! The embedded engine: the conformance suite, and what is done to it alone: kill -9, a full disk, a second process.

use super::conformance::suite;
use super::*;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Where a test's child process finds its store.
const CHILD: &str = "BIXI_STORE_TEST";

fn put(key: String, value: Vec<u8>) -> Txn {
    Txn { compares: Vec::new(), ops: vec![Op::Put { key: key.into_bytes(), value, lease: None }] }
}

fn child(test: &str, path: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = format!("store::embedded_tests::{test}");
    command.args(["--exact", &name, "--ignored", "--nocapture"]).env(CHILD, path);
    command
}

/// Where this process's store is, if it is the child of a test: who asks for ignored tests, too, asks for no child.
fn child_place() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

#[tokio::test]
async fn it_conforms() {
    let folder = tempfile::tempdir().unwrap();
    suite(Arc::new(EmbeddedStore::open(&folder.path().join("state")).unwrap())).await;
}

#[tokio::test]
async fn it_is_the_same_after_it_was_closed_and_used_by_one_process_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let store = EmbeddedStore::open(&path).unwrap();
    let second = EmbeddedStore::open(&path);
    assert!(matches!(second, Err(StoreError::InUse { .. })), "{second:?}");
    let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
    let op = Op::Put { key: b"a".to_vec(), value: b"1".to_vec(), lease: Some(lease) };
    let done = store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.unwrap();
    let entry = store.get(b"a").await.unwrap();
    drop(store);
    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(store.get(b"a").await.unwrap(), entry);
    let Outcome::Committed(revision) = done else { panic!("{done:?}") };
    assert!(store.watch(b"", revision).await.is_ok());
    assert!(matches!(store.watch(b"", revision - 1).await, Err(StoreError::Compacted { .. })));
    store.keep_alive(lease).await.unwrap();
    store.revoke(lease).await.unwrap();
    assert_eq!(store.get(b"a").await.unwrap(), None);
}

#[test]
fn a_file_of_something_else_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    std::fs::write(&path, vec![b'x'; 10_000]).unwrap();
    let opened = EmbeddedStore::open(&path);
    assert!(matches!(opened, Err(StoreError::Unusable { .. })), "{opened:?}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![b'x'; 10_000]);
}

/// Writes as fast as it can and says what was acknowledged, until it is killed.
#[tokio::test]
#[ignore = "the child of a test"]
async fn child_writes_until_killed() {
    let Some(place) = child_place() else { return };
    let store = Arc::new(EmbeddedStore::open(&place).unwrap());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4u64 {
        let store = store.clone();
        writers.spawn(async move {
            for number in 0.. {
                let value = vec![writer as u8; 100 + (number as usize * 37) % 3000];
                let key = format!("{writer}/{number:08}");
                store.txn(put(key, value)).await.unwrap();
                println!("acknowledged {writer} {number}");
            }
        });
    }
    writers.join_all().await;
}

#[tokio::test]
async fn a_kill_loses_no_acknowledged_commit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut lasts = [None::<u64>; 4];
    for round in 0..5usize {
        let _ = std::fs::remove_file(&path);
        let mut writing =
            child("child_writes_until_killed", &path).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(writing.stdout.take().unwrap()).lines();
        lasts = [None; 4];
        let mut note = |line: &str| {
            let mut words = line.strip_prefix("acknowledged ")?.split(' ');
            let writer: usize = words.next()?.parse().ok()?;
            lasts[writer] = Some(words.next()?.parse().ok()?);
            Some(())
        };
        let mut seen = 0;
        while seen < 40 + round * 60 {
            let line = lines.next().expect("the child ended by itself").unwrap();
            seen += usize::from(note(&line).is_some());
        }
        writing.kill().unwrap();
        // What it had said before it died counts too.
        lines.map_while(Result::ok).for_each(|line| {
            note(&line);
        });
        writing.wait().unwrap();
        let store = EmbeddedStore::open(&path).unwrap();
        for (writer, last) in lasts.iter().enumerate() {
            let keys =
                store.range(format!("{writer}/").as_bytes(), None, usize::MAX).await.unwrap();
            let kept = keys.entries.len() as u64;
            assert!(kept >= last.map_or(0, |last| last + 1), "writer {writer}: {kept} of {last:?}");
            assert!(keys.entries.iter().all(|e| e.value.iter().all(|b| usize::from(*b) == writer)));
        }
    }
    assert!(lasts.iter().all(Option::is_some));
}

fn limit_files(bytes: Option<u64>) {
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
}

/// Fills the store up to the limit of files' size, and goes on when the limit is lifted.
#[tokio::test]
#[ignore = "the child of a test"]
async fn child_meets_a_full_disk() {
    let Some(place) = child_place() else { return };
    // SAFETY: the process has one thread besides the runtime's, and ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let store = EmbeddedStore::open(&place).unwrap();
    limit_files(Some(8 << 20));
    let mut kept = 0u64;
    let full = loop {
        match store.txn(put(format!("{kept:08}"), vec![7; 100_000])).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 1000, "the limit was not met");
    };
    assert!(matches!(full, StoreError::Full { .. }), "{full:?}");
    assert!(full.to_string().contains("make room"));
    let again = store.txn(put("again".to_owned(), vec![7; 900_000])).await;
    assert!(matches!(again, Err(StoreError::Full { .. })), "{again:?}");
    assert_eq!(store.range(b"0", None, usize::MAX).await.unwrap().entries.len() as u64, kept);
    assert_eq!(store.get(b"again").await.unwrap(), None);

    limit_files(None);
    store.txn(put("again".to_owned(), vec![7; 900_000])).await.unwrap();
    let mut watch = store.watch(b"", kept).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, kept + 1);
    drop(store);
    let store = EmbeddedStore::open(&place).unwrap();
    assert_eq!(store.range(b"", None, usize::MAX).await.unwrap().entries.len() as u64, kept + 1);
    println!("went on after {kept}");
}

#[test]
fn a_full_disk_is_said_and_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let ran = child("child_meets_a_full_disk", &folder.path().join("state")).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("went on after"), "{ran:?}");
}
