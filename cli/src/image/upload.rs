//! A bundle's way to the cloud: an image without files, then each file with its digest, then it is available.

use super::Target;
use crate::context::Context;
use crate::failure::Failure;
use crate::progress::Progress;
use bixi_api::operator::{ImageCreate, ImageDescription, OperatorClient};
use bixi_image::bundle::{Boot, Bundle};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::fs::File;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Poll, ready};
use tokio::sync::mpsc;

/// What is read and sent at a time.
const PIECE: usize = 256 << 10;

/// Gives `bundle` to the cloud and prints the image. An upload that fails leaves nothing there.
pub async fn upload(
    context: &Context,
    bundle: &Bundle,
    name: &str,
    target: Target,
) -> Result<(), Failure> {
    let operator = context.operator()?;
    let manifest = &bundle.manifest;
    let cmdline = match &manifest.boot {
        Boot::Direct { command_line, .. } => command_line.clone(),
        Boot::Firmware => String::new(),
    };
    let create = ImageCreate {
        name: name.to_owned(),
        description: manifest.description.clone(),
        tenant: target.tenant,
        architecture: match manifest.architecture.as_str() {
            "aarch64" => "arm64".to_owned(),
            other => other.to_owned(),
        },
        os_name: target.os_name.unwrap_or_else(|| manifest.description.clone()),
        cmdline,
    };
    let made: ImageDescription = operator.ask(Method::POST, "/v1/images", &create).await?;
    let path = format!("/v1/images/{}", made.id);
    match fill(&operator, &path, bundle).await {
        Ok(image) => context.output.one(&image),
        Err(failure) => {
            if let Err(error) = operator.ask::<()>(Method::DELETE, &path, &()).await {
                eprintln!("bixi: image {} stays unfinished: {error}", made.id);
            }
            Err(failure)
        }
    }
}

async fn fill(
    operator: &OperatorClient,
    path: &str,
    bundle: &Bundle,
) -> Result<ImageDescription, Failure> {
    let manifest = &bundle.manifest;
    let mut parts = Vec::new();
    if let Boot::Direct { kernel, initrd, .. } = &manifest.boot {
        parts.extend([("kernel", kernel), ("initrd", initrd)]);
    }
    parts.extend(manifest.disk.as_ref().map(|disk| ("disk", &disk.file)));
    for (part, name) in parts {
        let Some(entry) = manifest.files.get(name) else { continue };
        let file = bundle.path(name);
        let open = |e| Failure::system(format!("read {}", file.display()), e);
        let body = Upload::new(File::open(&file).map_err(open)?, entry.bytes);
        let path = format!("{path}/{part}");
        operator.upload::<ImageDescription>(&path, &entry.sha256, body.boxed()).await?;
    }
    Ok(operator.ask(Method::PUT, &format!("{path}/available"), &()).await?)
}

/// A file as a request's body, read by a thread of its own.
struct Upload {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    progress: Progress,
    sent: u64,
    size: u64,
}

impl Upload {
    fn new(mut file: File, size: u64) -> Self {
        let (sender, pieces) = mpsc::channel(4);
        std::thread::spawn(move || {
            let mut piece = vec![0; PIECE];
            loop {
                let read = file.read(&mut piece);
                let last = matches!(read, Ok(0) | Err(_));
                let read = read.map(|n| Bytes::copy_from_slice(&piece[..n]));
                // Nobody reads any more when the connection broke.
                if sender.blocking_send(read).is_err() || last {
                    return;
                }
            }
        });
        Self { pieces, progress: Progress::new(), sent: 0, size }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let piece = match ready!(this.pieces.poll_recv(context)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(piece)) if piece.is_empty() => return Poll::Ready(None),
            Some(Ok(piece)) => piece,
        };
        this.sent += piece.len() as u64;
        let percent = u128::from(this.sent) * 100 / u128::from(this.size.max(1));
        this.progress.say(&format!("sending: {}%", percent / 10 * 10));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.size.saturating_sub(self.sent))
    }
}
