//! `bixi-storage disk …`: one request to the control socket, its answer as a table or as JSON.

use super::{Failure, size};
use bixi_api::client::{ClientError, ControlClient};
use bixi_api::storage::{DiskAttach, DiskCreate, DiskDescription, DiskLimits};
use clap::{Subcommand, ValueEnum};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

/// How long a creation may take: an image is as large as it is.
const CREATE_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// How long a request waits that waits for a disk.
const DEADLINE: Duration = Duration::from_secs(60);

/// What is asked, and of whom.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Control socket of the process.
    #[arg(long, global = true, value_name = "SOCKET", default_value = "/run/bixi/storage.sock")]
    control: PathBuf,
    /// How the answer is written.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All disks.
    List,
    /// One disk.
    Show {
        /// The disk's id.
        id: String,
    },
    /// Make a disk, empty or from a raw image.
    Create {
        /// The disk's id: a prefix, `-` and 20 letters or digits.
        id: String,
        /// Its size, for example 10G; the image's unless told.
        #[arg(long, value_parser = size::parse, required_unless_present = "image")]
        size: Option<u64>,
        /// A raw image that it begins with.
        #[arg(long, value_name = "FILE")]
        image: Option<PathBuf>,
    },
    /// Delete a disk that is not attached, or end its creation.
    Delete {
        /// The disk's id.
        id: String,
    },
    /// Serve a disk on a vhost-user socket; the same again with other limits changes them while it goes on.
    Attach {
        /// The disk's id.
        id: String,
        /// Where front ends connect.
        #[arg(long, value_name = "SOCKET")]
        socket: PathBuf,
        /// The placement's epoch; a lower one than the disk has seen is refused.
        #[arg(long, value_name = "N")]
        epoch: u64,
        /// Request queues offered.
        #[arg(long, value_name = "N", default_value_t = 4)]
        queues: u16,
        /// Refuse writes.
        #[arg(long)]
        read_only: bool,
        /// Accept a front end whose memory can shrink, as that of foreign ones.
        #[arg(long)]
        allow_unsealed: bool,
        /// The most reads, writes and discards a second, a tenth of it at once; flushes are free. No limit unless told.
        #[arg(long, value_name = "N")]
        iops: Option<u64>,
        /// The most bytes a second, for example 100M, a tenth of it at once. No limit unless told.
        #[arg(long, value_name = "N", value_parser = size::parse)]
        bytes_per_second: Option<u64>,
    },
    /// Serve a disk no longer.
    Detach {
        /// The disk's id.
        id: String,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask(arguments))
}

async fn ask(arguments: &Arguments) -> Result<(), Failure> {
    let client = ControlClient::new(&arguments.control).with_deadline(DEADLINE);
    let path = |id: &str| format!("/v1/disks/{}", escape(id));
    let disks: Vec<DiskDescription> = match &arguments.verb {
        Verb::List => {
            let disks: Vec<DiskDescription> = client.get("/v1/disks").await?;
            return list(arguments.output, &disks);
        }
        Verb::Show { id } => {
            let disk: DiskDescription = client.get(&path(id)).await?;
            return show(arguments.output, &disk);
        }
        Verb::Create { id, size, image } => {
            // The process opens the image: a relative path would be relative to somewhere else.
            let image = image.as_ref().map(std::path::absolute).transpose()?;
            let create = DiskCreate { id: id.clone(), size: *size, image };
            vec![make(&client, &create).await?]
        }
        Verb::Delete { id } => {
            let () = client.delete(&path(id)).await?;
            return Ok(());
        }
        Verb::Attach {
            id,
            socket,
            epoch,
            queues,
            read_only,
            allow_unsealed,
            iops,
            bytes_per_second,
        } => {
            let attach = DiskAttach {
                epoch: *epoch,
                socket: std::path::absolute(socket)?,
                queues: *queues,
                read_only: *read_only,
                require_sealed: !allow_unsealed,
                limits: DiskLimits { iops: *iops, bytes_per_second: *bytes_per_second },
            };
            vec![client.put(&format!("{}/attachment", path(id)), &attach).await?]
        }
        Verb::Detach { id } => {
            vec![client.delete(&format!("{}/attachment", path(id))).await?]
        }
    };
    list(arguments.output, &disks)
}

/// Asks for a disk, and tells a person at a terminal how far it is.
async fn make(client: &ControlClient, create: &DiskCreate) -> Result<DiskDescription, ClientError> {
    let patient = client.clone().with_deadline(CREATE_DEADLINE);
    let made = patient.post("/v1/disks", create);
    tokio::pin!(made);
    let watched = std::io::stderr().is_terminal() && create.image.is_some();
    let mut beat = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            made = &mut made => {
                if watched {
                    eprint!("\r\x1b[K");
                }
                return made;
            }
            _ = beat.tick(), if watched => {
                let path = format!("/v1/disks/{}", escape(&create.id));
                if let Ok(disk) = client.get::<DiskDescription>(&path).await
                    && let Some(creation) = disk.creation
                {
                    let (done, total) = (size::show(creation.done), size::show(creation.total));
                    eprint!("\r\x1b[K{done} of {total}");
                }
            }
        }
    }
}

/// An id as part of a path: whatever is no letter, digit or `-` is escaped, for the process to refuse it by its name.
fn escape(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    id.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn list(output: Output, disks: &[DiskDescription]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if let Output::Json = output {
        serde_json::to_writer_pretty(&mut out, disks).map_err(std::io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    let mut rows = vec![["ID", "SIZE", "EPOCH", "STATE", "SOCKET"].map(str::to_owned)];
    rows.extend(disks.iter().map(row));
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn row(disk: &DiskDescription) -> [String; 5] {
    let socket = disk.attachment.as_ref().map(|a| a.attach.socket.display().to_string());
    // A fault at rest is one of its files; one in use is one of the medium.
    let known = has_known_size(disk) && disk.creation.is_none();
    let known = |text: String| if known { text } else { "-".to_owned() };
    [
        disk.id.clone(),
        known(size::show(disk.size)),
        known(disk.epoch.to_string()),
        state(disk),
        socket.unwrap_or_else(|| "-".to_owned()),
    ]
}

fn has_known_size(disk: &DiskDescription) -> bool {
    disk.fault.is_none() || disk.attachment.is_some()
}

fn state(disk: &DiskDescription) -> String {
    if disk.fault.is_some() {
        return "damaged".to_owned();
    }
    if let Some(creation) = disk.creation {
        let percent = (creation.done * 100).checked_div(creation.total);
        return percent.map_or("creating".to_owned(), |percent| format!("creating {percent}%"));
    }
    match &disk.attachment {
        None => "free",
        Some(attachment) if !attachment.locked => "waiting",
        Some(attachment) if attachment.connected => "connected",
        Some(_) => "attached",
    }
    .to_owned()
}

fn show(output: Output, disk: &DiskDescription) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if let Output::Json = output {
        serde_json::to_writer_pretty(&mut out, disk).map_err(std::io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    let mut line = |name: &str, value: String| writeln!(out, "{name:<14}{value}");
    line("id", disk.id.clone())?;
    line("state", state(disk))?;
    if let Some(fault) = &disk.fault {
        line("fault", fault.clone())?;
    }
    if has_known_size(disk) {
        line("size", format!("{} ({} bytes)", size::show(disk.size), disk.size))?;
        line("epoch", disk.epoch.to_string())?;
    }
    let Some(attachment) = &disk.attachment else { return Ok(()) };
    let (attach, seen) = (&attachment.attach, &attachment.statistics);
    line("socket", attach.socket.display().to_string())?;
    line("queues", attach.queues.to_string())?;
    line("read-only", attach.read_only.to_string())?;
    line("sealed", if attach.require_sealed { "required" } else { "not required" }.to_owned())?;
    line("limits", limits(&attach.limits))?;
    if let Some(waiting) = &attachment.waiting {
        line("waiting", waiting.clone())?;
    }
    if let Some(fault) = &attachment.last_fault {
        line("last fault", fault.clone())?;
    }
    line("reads", format!("{} ({})", seen.reads, size::show(seen.read_bytes)))?;
    line("writes", format!("{} ({})", seen.writes, size::show(seen.write_bytes)))?;
    line("flushes", seen.flushes.to_string())?;
    line("discards", seen.discards.to_string())?;
    line("errors", seen.errors.to_string())?;
    line("replayed", seen.replayed.to_string())?;
    line("limited", seen.limited.to_string())?;
    Ok(())
}

fn limits(limits: &DiskLimits) -> String {
    let iops = limits.iops.map(|iops| format!("{iops} IOPS"));
    let bytes = limits.bytes_per_second.map(|bytes| format!("{}/s", size::show(bytes)));
    let told: Vec<String> = iops.into_iter().chain(bytes).collect();
    if told.is_empty() { "none".to_owned() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_become_another_path() {
        assert_eq!(escape("d-0123"), "d-0123");
        assert_eq!(escape("../x?y"), "%2E%2E%2Fx%3Fy");
    }

    #[test]
    fn limits_are_shown_as_they_were_asked_for() {
        let of = |iops, bytes_per_second| limits(&DiskLimits { iops, bytes_per_second });
        assert_eq!(of(None, None), "none");
        assert_eq!(of(Some(200), Some(10 << 20)), "200 IOPS, 10 MiB/s");
    }

    #[test]
    fn every_state_has_its_word() {
        let disk = DiskDescription {
            id: "d-0123456789abcdefghij".into(),
            size: 1 << 30,
            epoch: 3,
            attachment: None,
            creation: None,
            fault: None,
        };
        assert_eq!(row(&disk)[1..], ["1 GiB", "3", "free", "-"]);
        let creation = Some(bixi_api::storage::DiskCreation { done: 1, total: 4 });
        assert_eq!(state(&DiskDescription { creation, ..disk.clone() }), "creating 25%");
        let creation = Some(bixi_api::storage::DiskCreation { done: 0, total: 0 });
        assert_eq!(state(&DiskDescription { creation, ..disk.clone() }), "creating");
        assert_eq!(state(&DiskDescription { fault: Some("x".into()), ..disk }), "damaged");
    }
}
