//! What every engine must do, written against the trait alone, and run here on the embedded engine.

use super::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: value.into(), lease: None }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

fn when(key: &str, modified: Revision) -> Compare {
    Compare { key: key.into(), modified }
}

async fn txn(store: &dyn Store, compares: Vec<Compare>, ops: Vec<Op>) -> Outcome {
    store.txn(Txn { compares, ops }).await.unwrap()
}

async fn committed(store: &dyn Store, ops: Vec<Op>) -> Revision {
    match txn(store, Vec::new(), ops).await {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict(_) => unreachable!("there was nothing to conflict with"),
    }
}

async fn next(watch: &mut Box<dyn Watch>) -> Batch {
    tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap()
}

async fn a_transaction_is_whole_and_has_one_revision(store: &dyn Store) {
    let first = committed(store, vec![put("a/1", "x"), put("a/2", "y"), put("b", "z")]).await;
    let page = store.range(b"a/", None, 10).await.unwrap();
    assert_eq!(page.entries.len(), 2);
    assert!(page.entries.iter().all(|entry| entry.modified == first && entry.created == first));
    assert_eq!((page.revision, page.more), (first, false));

    let second = committed(store, vec![put("a/1", "new"), delete("a/2"), delete("none")]).await;
    assert_eq!(second, first + 1);
    let entry = store.get(b"a/1").await.unwrap().unwrap();
    assert_eq!(
        (entry.created, entry.modified, entry.value.as_slice()),
        (first, second, &b"new"[..])
    );
    assert_eq!(store.get(b"a/2").await.unwrap(), None);
    // What changes nothing takes no revision.
    assert_eq!(committed(store, vec![delete("none")]).await, second);
}

async fn compares_decide(store: &dyn Store) {
    let made = txn(store, vec![when("cas", 0)], vec![put("cas", "1")]).await;
    let Outcome::Committed(revision) = made else { panic!("{made:?}") };
    let again = txn(store, vec![when("cas", 0)], vec![put("cas", "2")]).await;
    assert!(matches!(again, Outcome::Conflict(now) if now >= revision));
    let both = vec![when("cas", revision), when("missing", 0)];
    assert!(matches!(txn(store, both, vec![put("cas", "3")]).await, Outcome::Committed(_)));
    let stale = vec![when("cas", revision), when("missing", 0)];
    assert!(matches!(txn(store, stale, vec![put("side", "!")]).await, Outcome::Conflict(_)));
    assert_eq!(store.get(b"side").await.unwrap(), None);
}

async fn pages_join(store: &dyn Store) {
    for chunk in 0..3 {
        let ops = (0..100).map(|n| put(&format!("page/{:03}", chunk * 100 + n), "v")).collect();
        committed(store, ops).await;
    }
    committed(store, vec![put("page", "before"), put("pagf", "behind")]).await;
    let (mut after, mut seen): (Option<Vec<u8>>, Vec<Vec<u8>>) = (None, Vec::new());
    loop {
        let page = store.range(b"page/", after.as_deref(), 7).await.unwrap();
        assert!(page.entries.len() <= 7);
        seen.extend(page.entries.into_iter().map(|entry| entry.key));
        after = seen.last().cloned();
        if !page.more {
            break;
        }
    }
    let expected: Vec<Vec<u8>> = (0..300).map(|n| format!("page/{n:03}").into_bytes()).collect();
    assert_eq!(seen, expected);
}

async fn limits_are_said(store: &dyn Store) {
    let many =
        |n| Txn { compares: Vec::new(), ops: (0..n).map(|n| put(&format!("l/{n}"), "")).collect() };
    assert!(store.txn(many(TXN_OPERATIONS)).await.is_ok());
    let refused = store.txn(many(TXN_OPERATIONS + 1)).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { operations: 129, .. })), "{refused:?}");
    let large = vec![Op::Put { key: b"x".to_vec(), value: vec![0; TXN_BYTES], lease: None }];
    let refused = store.txn(Txn { compares: Vec::new(), ops: large }).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    for ops in
        [vec![put("", "")], vec![put(&"k".repeat(513), "")], vec![put("x", "1"), delete("x")]]
    {
        let refused = store.txn(Txn { compares: Vec::new(), ops }).await;
        assert!(matches!(refused, Err(StoreError::Key(_))), "{refused:?}");
    }
}

/// Many tasks add one to the same number by compare and set: none is lost.
async fn races_lose_nothing(store: &Arc<dyn Store>) {
    const TASKS: u64 = 8;
    const ROUNDS: u64 = 25;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            let mut conflicts = 0u64;
            let mut done = 0;
            while done < ROUNDS {
                let entry = store.get(b"number").await.unwrap();
                let modified = entry.as_ref().map_or(0, |entry| entry.modified);
                let number = entry.map_or(0, |entry| {
                    String::from_utf8(entry.value).unwrap().parse::<u64>().unwrap()
                });
                let op = put("number", &(number + 1).to_string());
                match txn(&*store, vec![when("number", modified)], vec![op]).await {
                    Outcome::Committed(_) => done += 1,
                    Outcome::Conflict(_) => conflicts += 1,
                }
            }
            conflicts
        });
    }
    tasks.join_all().await;
    let number = store.get(b"number").await.unwrap().unwrap().value;
    assert_eq!(number, (TASKS * ROUNDS).to_string().into_bytes());
}

/// A watcher that reconnects all the time builds the same map as a reader in the end.
async fn a_watch_misses_nothing_across_reconnects(store: &Arc<dyn Store>) {
    let start = committed(&**store, vec![put("w/start", "")]).await;
    let writers: Vec<_> = (0..4u64)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..60u64 {
                    let key = format!("w/{}", (writer * 7 + round) % 11);
                    let op = if round % 5 == 4 {
                        delete(&key)
                    } else {
                        put(&key, &format!("{writer}.{round}"))
                    };
                    committed(&*store, vec![op, put("elsewhere", "")]).await;
                }
            })
        })
        .collect();
    let ended = tokio::spawn({
        let store = store.clone();
        async move {
            for writer in writers {
                writer.await.unwrap();
            }
            committed(&*store, vec![put("w/end", "")]).await
        }
    });
    let (mut map, mut at, mut seen) = (BTreeMap::new(), start, 0u64);
    map.insert(b"w/start".to_vec(), Vec::new());
    'connections: loop {
        let mut watch = store.watch(b"w/", at).await.unwrap();
        for _ in 0..7 {
            let batch = next(&mut watch).await;
            assert!(batch.revision > at, "a revision came twice or out of order");
            at = batch.revision;
            for change in batch.changes {
                assert!(change.key.starts_with(b"w/"));
                seen += 1;
                match change.entry {
                    Some(entry) => map.insert(change.key.clone(), entry.value),
                    None => map.remove(&change.key),
                };
                if change.key == b"w/end" {
                    break 'connections;
                }
            }
        }
    }
    assert_eq!(ended.await.unwrap(), at);
    let page = store.range(b"w/", None, 100).await.unwrap();
    let read: BTreeMap<_, _> = page.entries.into_iter().map(|e| (e.key, e.value)).collect();
    assert_eq!(map, read);
    assert!(seen > 100);
}

async fn an_old_revision_is_compacted_not_skipped(store: &dyn Store) {
    match store.watch(b"", 0).await {
        Ok(mut watch) => assert_eq!(next(&mut watch).await.revision, 1),
        Err(error) => assert!(matches!(error, StoreError::Compacted { .. }), "{error}"),
    }
}

async fn keys_end_with_their_lease(store: &dyn Store) {
    let at = committed(store, vec![put("lease/start", "")]).await;
    let mut watch = store.watch(b"lease/", at).await.unwrap();
    let short = store.grant(Duration::from_millis(150)).await.unwrap();
    let long = store.grant(Duration::from_secs(3600)).await.unwrap();
    let with =
        |key: &str, lease| Op::Put { key: key.into(), value: Vec::new(), lease: Some(lease) };
    committed(
        store,
        vec![with("lease/short", short), with("lease/long", long), with("lease/out", short)],
    )
    .await;
    committed(store, vec![put("lease/out", "no longer leased")]).await;
    next(&mut watch).await;
    next(&mut watch).await;
    // Kept alive, it outlives its time several times over.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(450) {
        store.keep_alive(short).await.unwrap();
        assert!(store.get(b"lease/short").await.unwrap().is_some());
    }
    let ended = next(&mut watch).await;
    assert_eq!(ended.changes, vec![Change { key: b"lease/short".to_vec(), entry: None }]);
    assert_eq!(store.keep_alive(short).await, Err(StoreError::NoLease(short)));
    let late = Txn { compares: Vec::new(), ops: vec![with("lease/late", short)] };
    assert_eq!(store.txn(late).await, Err(StoreError::NoLease(short)));
    assert!(store.get(b"lease/out").await.unwrap().is_some());

    store.revoke(long).await.unwrap();
    assert_eq!(next(&mut watch).await.changes[0].key, b"lease/long");
    assert_eq!(store.revoke(long).await, Err(StoreError::NoLease(long)));
}

/// All of it on one store, as it would run against a cluster that exists once.
pub(super) async fn suite(store: Arc<dyn Store>) {
    a_transaction_is_whole_and_has_one_revision(&*store).await;
    compares_decide(&*store).await;
    pages_join(&*store).await;
    limits_are_said(&*store).await;
    races_lose_nothing(&store).await;
    a_watch_misses_nothing_across_reconnects(&store).await;
    an_old_revision_is_compacted_not_skipped(&*store).await;
    keys_end_with_their_lease(&*store).await;
}
