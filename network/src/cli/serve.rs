//! `bixi-network serve`.

use super::Failure;
use crate::packet::vxlan;
use crate::service::serve::{Settings, serve};
use bixi_api::file::FileSource;
use bixi_offload::log_sink::LogSink;
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// How the process is started.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Directory where ports, segments, flows and leases are kept, on tmpfs: they outlive the process, not the machine.
    #[arg(long, value_name = "DIR", default_value = "/run/bixi/network")]
    state: PathBuf,
    /// Control socket: a path, or `fd:N` for an inherited one that listens already.
    #[arg(long, value_name = "SOCKET", value_parser = source)]
    control: FileSource,
    /// This server's tunnel end point, for segments that reach other servers; port 4789 unless told.
    #[arg(long, value_name = "IP[:PORT]", value_parser = endpoint)]
    underlay: Option<SocketAddr>,
    /// Processor that the worker stays on. Unless told, it runs anywhere.
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// Microseconds for which the worker polls after its last work before it sleeps.
    #[arg(long, value_name = "N", default_value_t = 50)]
    spin: u64,
}

fn source(text: &str) -> Result<FileSource, String> {
    match text.strip_prefix("fd:") {
        Some(number) => number.parse().map(FileSource::Fd).map_err(|_| "expected fd:N".to_owned()),
        None => Ok(FileSource::Path(text.into())),
    }
}

/// An end point: an address with a port, or without, which means VXLAN's own.
pub(super) fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let alone = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, vxlan::PORT));
    text.parse().or_else(|_| alone()).map_err(|_| format!("`{text}` is no IP:PORT"))
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
    let settings = Settings {
        state: arguments.state.clone(),
        control: arguments.control.clone(),
        underlay: arguments.underlay,
        cpu: arguments.cpu,
        spin: Duration::from_micros(arguments.spin),
    };
    bixi_offload::failpoint::arm_from_env(&[]).map_err(Failure::usage)?;
    serve(&settings).map_err(|e| Failure { message: e.to_string(), status: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_points_and_sockets_are_read() {
        let v4: SocketAddr = "192.0.2.1:4789".parse().unwrap();
        assert_eq!(endpoint("192.0.2.1"), Ok(v4));
        assert_eq!(endpoint("192.0.2.1:4789"), Ok(v4));
        assert_eq!(endpoint("2001:db8::1"), Ok("[2001:db8::1]:4789".parse().unwrap()));
        assert!(endpoint("here").is_err());
        assert_eq!(source("fd:7"), Ok(FileSource::Fd(7)));
        assert!(source("fd:x").is_err());
    }
}
