//! The files of images: in one folder, named by their ids, never changed.
//!
//! Invariants: a file under its id is whole and has the sum that its record says; what is being written has another name
//! and is swept away at the next start. Called by the operator's interface, which writes, and the agents', which reads.

use aws_lc_rs::digest::{Context, SHA256};
use axum::body::{Body, Bytes};
use bixi_api::agent::SHA256_HEADER;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::Poll;
use tokio::fs::{self, File};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

/// The end of the name of a file that is being written.
const PART: &str = ".part";
/// Bytes of one read.
const CHUNK: usize = 256 << 10;

/// Why a file was not kept.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The medium failed.
    #[error("cannot keep the image's file in {}: {source}; make room or look at the medium, and upload again", folder.display())]
    Io {
        /// The folder of images.
        folder: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The upload broke.
    #[error("the upload broke: {0}; upload again")]
    Broken(String),
    /// The bytes are others.
    #[error(
        "the bytes have the SHA-256 {got}, {wanted} was told: the file was damaged on its way; upload again"
    )]
    Sum {
        /// What the bytes give.
        got: String,
        /// What was told.
        wanted: String,
    },
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Images {
    folder: PathBuf,
}

impl Images {
    /// Opens the folder; what a dead process left half written goes.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(PART) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// Keeps a file, if its bytes have this SHA-256. Gives its size.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn keep(
        &self,
        id: &str,
        sha256: &str,
        upload: u64,
        body: Body,
    ) -> Result<u64, ImageError> {
        let part = self.folder.join(format!("{id}.{upload}{PART}"));
        let kept = self.write(&part, sha256, body).await;
        let kept = match kept {
            Ok(size) => self.publish(&part, id).await.map(|()| size),
            Err(error) => Err(error),
        };
        if kept.is_err() {
            let _ = fs::remove_file(&part).await;
        }
        kept
    }

    async fn write(&self, part: &Path, sha256: &str, mut body: Body) -> Result<u64, ImageError> {
        let fail = |source| ImageError::Io { folder: self.folder.clone(), source };
        let mut file = File::create(part).await.map_err(fail)?;
        let (mut sum, mut size) = (Context::new(&SHA256), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| ImageError::Broken(e.to_string()))?;
            if let Ok(data) = frame.into_data() {
                sum.update(&data);
                size += data.len() as u64;
                file.write_all(&data).await.map_err(fail)?;
            }
        }
        let got = crate::tls::hex(sum.finish().as_ref());
        if got != sha256 {
            return Err(ImageError::Sum { got, wanted: sha256.to_owned() });
        }
        file.flush().await.map_err(fail)?;
        file.sync_all().await.map_err(fail)?;
        Ok(size)
    }

    async fn publish(&self, part: &Path, id: &str) -> Result<(), ImageError> {
        let fail = |source| ImageError::Io { folder: self.folder.clone(), source };
        fs::rename(part, self.folder.join(id)).await.map_err(fail)?;
        File::open(&self.folder).await.map_err(fail)?.sync_all().await.map_err(fail)
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_file(self.folder.join(id)).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// An answer with the file's bytes.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn serve(&self, id: &str, sha256: &str) -> io::Result<axum::response::Response> {
        let file = File::open(self.folder.join(id)).await?;
        let size = file.metadata().await?.len();
        axum::response::Response::builder()
            .header("content-type", "application/octet-stream")
            .header("content-length", size)
            .header(SHA256_HEADER, sha256)
            .body(Body::new(StreamBody::new(Chunks { file, buffer: vec![0; CHUNK] })))
            .map_err(io::Error::other)
    }
}

/// A file's bytes, as frames of a body.
struct Chunks {
    file: File,
    buffer: Vec<u8>,
}

impl futures_core::Stream for Chunks {
    type Item = io::Result<Frame<Bytes>>;

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let mut read = ReadBuf::new(&mut this.buffer);
        match Pin::new(&mut this.file).poll_read(context, &mut read) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            Poll::Ready(Ok(())) if read.filled().is_empty() => Poll::Ready(None),
            Poll::Ready(Ok(())) => {
                let bytes = Bytes::copy_from_slice(read.filled());
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
        }
    }
}
