//! `bixi-storage serve`.

use super::Failure;
use crate::engine::points;
use crate::service::serve::{BenchDisk, Settings, serve};
use bixi_api::file::FileSource;
use bixi_offload::log_sink::LogSink;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// How the process is started.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Directory of the disks, one directory each.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Directory where attachments are written down, on tmpfs: they outlive the process, not the machine.
    #[arg(long, value_name = "DIR", default_value = "/run/bixi/storage")]
    state: PathBuf,
    /// Control socket: a path, or `fd:N` for an inherited one that listens already.
    #[arg(long, value_name = "SOCKET", value_parser = source)]
    control: FileSource,
    /// Worker threads.
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: usize,
    /// Processors that the workers stay on, one each, for example 2,3 or 4-7. Unless told, workers run anywhere.
    #[arg(long, value_name = "LIST", value_parser = cpus)]
    cpus: Option<Cpus>,
    /// Microseconds for which a worker polls after its last work before it sleeps.
    #[arg(long, value_name = "N", default_value_t = 50)]
    spin: u64,
    /// For measurements only: serve a disk that keeps nothing, or keeps it in memory.
    #[arg(long, value_name = "null|memory:ID:SIZE:SOCKET[:QUEUES]")]
    bench_disk: Vec<BenchDisk>,
}

/// A list of processors.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cpus(Vec<usize>);

fn source(text: &str) -> Result<FileSource, String> {
    match text.strip_prefix("fd:") {
        Some(number) => number.parse().map(FileSource::Fd).map_err(|_| "expected fd:N".to_owned()),
        None => Ok(FileSource::Path(text.into())),
    }
}

fn cpus(text: &str) -> Result<Cpus, String> {
    let wrong = || format!("`{text}` is not a list of processors, for example 2,3 or 4-7");
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.parse().map_err(|_| wrong())?;
        let last: usize = last.parse().map_err(|_| wrong())?;
        if last < first || last >= rustix::thread::CpuSet::MAX_CPU {
            return Err(wrong());
        }
        list.extend(first..=last);
    }
    Ok(Cpus(list))
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let filter = EnvFilter::try_from_env("BIXI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    let (sink, _flush) = LogSink::to_stderr().map_err(|e| Failure {
        message: format!("cannot start the thread that writes the log: {e}"),
        status: 1,
    })?;
    log.with_writer(move || sink.clone()).init();
    let cpus = arguments.cpus.clone().map(|cpus| cpus.0).unwrap_or_default();
    let settings = Settings {
        root: arguments.root.clone(),
        state: arguments.state.clone(),
        control: arguments.control.clone(),
        workers: if cpus.is_empty() { arguments.workers } else { cpus.len() },
        cpus,
        spin: Duration::from_micros(arguments.spin),
        bench_disks: arguments.bench_disk.clone(),
    };
    bixi_offload::failpoint::arm_from_env(&points::ALL)
        .map_err(|message| Failure { message, status: 2 })?;
    serve(&settings).map_err(|e| Failure { message: e.to_string(), status: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_and_sockets_are_read() {
        assert_eq!(cpus("2").unwrap().0, [2]);
        assert_eq!(cpus("2,4-6").unwrap().0, [2, 4, 5, 6]);
        for text in ["", "a", "3-2", "1,,2", "-1", "9999999"] {
            assert!(cpus(text).is_err(), "{text}");
        }
        assert_eq!(source("fd:7"), Ok(FileSource::Fd(7)));
        assert!(source("fd:x").is_err());
        assert_eq!(source("/run/x"), Ok(FileSource::Path("/run/x".into())));
    }

    #[test]
    fn bench_disks_are_read() {
        let disk: BenchDisk = "null:d-0123456789abcdefghij:1G:/tmp/s".parse().unwrap();
        assert_eq!((disk.memory, disk.size, disk.queues), (false, 1 << 30, 1));
        let disk: BenchDisk = "memory:d-0123456789abcdefghij:512:/tmp/s:4".parse().unwrap();
        assert_eq!((disk.memory, disk.queues), (true, 4));
        for text in [
            "",
            "null",
            "file:d-0123456789abcdefghij:1G:/s",
            "null:x:1G:/s",
            "null:d-0123456789abcdefghij:1G:/s:0",
        ] {
            assert!(text.parse::<BenchDisk>().is_err(), "{text}");
        }
    }
}
