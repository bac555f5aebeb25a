//! Durable transactions per second of the store alone.

use crate::BenchError;
use bixi_cloud::store::{EmbeddedStore, Op, Store, Txn};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Writers that wait for their own transaction each: a group commit makes several durable at once.
const WRITERS: usize = 16;
/// Bytes of a value: those of an instance's record.
const VALUE: usize = 512;

/// Transactions per second in a new store at `path`.
pub(super) fn measure(path: &Path, seconds: f64) -> Result<f64, BenchError> {
    let failed = |error| BenchError::Wrong(format!("the store: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(BenchError::system("start a runtime"))?;
    let store = Arc::new(EmbeddedStore::open(path).map_err(failed)?);
    let (start, time) = (Instant::now(), Duration::from_secs_f64(seconds));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            runtime.spawn(async move {
                let mut done = 0_u64;
                while start.elapsed() < time {
                    let key = format!("bench/{writer}/{}", done % 1000).into_bytes();
                    let put = Op::Put { key, value: vec![7; VALUE], lease: None };
                    store.txn(Txn { compares: Vec::new(), ops: vec![put] }).await?;
                    done += 1;
                }
                Ok(done)
            })
        })
        .collect();
    let mut done = 0;
    for writer in writers {
        let result = runtime.block_on(writer);
        done += result.map_err(|e| BenchError::Wrong(e.to_string()))?.map_err(failed)?;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}
