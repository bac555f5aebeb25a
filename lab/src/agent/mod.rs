//! The agent: what a server runs so that the lab can run programs, move files and reach sockets in it.
//!
//! One thread per connection, one connection per operation ([`crate::wire`]). It trusts whoever reaches it: the
//! management network exists only inside the rack's own network namespace.

mod processes;
mod run;

use crate::error::{Attempt, Result};
use crate::wire::{self, Answer, Kind, Request};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Serves for ever.
///
/// # Errors
/// When the port cannot be listened on.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", wire::PORT))
        .attempt(|| format!("listen on port {}", wire::PORT))?;
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let _ = stream.set_nodelay(true);
            // The other end reads the failure; a broken connection has nobody left to tell.
            if let Err(error) = converse(&stream) {
                let failed = Answer::Failed { message: error.to_string() };
                let _ = wire::send_message(&mut &stream, &failed);
            }
        });
    }
    Ok(())
}

fn converse(stream: &TcpStream) -> io::Result<()> {
    let mut out = stream;
    match wire::receive_message(&mut { stream })? {
        Request::Hello => {
            let hello = Answer::Hello {
                uptime_ms: processes::uptime_ms(),
                kvm: Path::new("/dev/kvm").exists(),
                processes: processes::foreign().len(),
            };
            wire::send_message(&mut out, &hello)
        }
        Request::Run(run) => run::run(stream, &run),
        Request::Put { path, mode } => {
            put(stream, &path, mode).map_err(|e| named(&path, &e))?;
            wire::send_message(&mut out, &Answer::Done)
        }
        Request::Get { path } => get(stream, &path).map_err(|e| named(&path, &e)),
        Request::Connect { path } => {
            let socket = UnixStream::connect(&path).map_err(|e| named(&path, &e))?;
            wire::send_message(&mut out, &Answer::Done)?;
            relay(stream, &socket)
        }
        Request::Reset => {
            processes::reset()?;
            wire::send_message(&mut out, &Answer::Done)
        }
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn put(mut stream: &TcpStream, path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // A running program's file cannot be written, but it can be replaced.
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".incoming");
    let mut file = fs::File::create(&unfinished)?;
    loop {
        match wire::receive(&mut stream)? {
            Some((Kind::Data, bytes)) => file.write_all(&bytes)?,
            Some((Kind::End, _)) => break,
            _ => return Err(io::Error::other("the file broke off")),
        }
    }
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    drop(file);
    fs::rename(&unfinished, path)
}

fn get(mut stream: &TcpStream, path: &Path) -> io::Result<()> {
    let mut file = fs::File::open(path)?;
    wire::send_message(&mut stream, &Answer::Done)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return wire::send(&mut stream, Kind::End, &[]),
            n => wire::send(&mut stream, Kind::Data, &buffer[..n])?,
        }
    }
}

/// Carries bytes both ways until both directions have ended.
fn relay(stream: &TcpStream, socket: &UnixStream) -> io::Result<()> {
    let (mut back, mut from) = (stream.try_clone()?, socket.try_clone()?);
    let other = std::thread::spawn(move || {
        // An error here is the end of this direction.
        let _ = io::copy(&mut from, &mut back);
        let _ = back.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut { stream }, &mut { socket });
    let _ = socket.shutdown(Shutdown::Write);
    // A socket that keeps talking to a client who is gone is cut by its failing writes.
    let _ = other.join();
    Ok(())
}
