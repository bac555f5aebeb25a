//! Images: fetched from the cloud once, kept by their sum.
//!
//! Invariant: a file that is called by a sum has had it when it got that name.

use super::{Executor, Fault};
use aws_lc_rs::digest::{Context, SHA256};
use bixi_api::agent::{BootSource, DesiredInstance, ImageFile};
use std::path::PathBuf;
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;

/// Room that is left on the file system when an image is fetched, in bytes.
const RESERVE: u64 = 16 << 20;
/// How often progress is told, in bytes.
const STEP: u64 = 1 << 20;

impl Executor {
    /// Gets every image of `desired` that is not here.
    pub(super) async fn fetch(&self, id: &str, desired: &DesiredInstance) -> Result<(), Fault> {
        let BootSource::Kernel { kernel, initrd, .. } = &desired.source;
        let disks = desired.disks.iter().filter_map(|disk| disk.image.as_ref());
        for image in [kernel].into_iter().chain(initrd).chain(disks) {
            self.fetch_one(id, image).await?;
        }
        Ok(())
    }

    /// Where an image is, once it is here.
    pub(super) fn image(&self, image: &ImageFile) -> Result<PathBuf, Fault> {
        let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if image.sha256.len() == 64 && image.sha256.bytes().all(digit) {
            return Ok(self.places.images().join(&image.sha256));
        }
        let message = format!("image {} has no SHA-256 but `{}`.", image.id, image.sha256);
        Err(Fault::new("BadImage", message, "Import the image again."))
    }

    async fn fetch_one(&self, id: &str, image: &ImageFile) -> Result<(), Fault> {
        let path = self.image(image)?;
        let _turn = self.fetching.lock().await;
        if fs::metadata(&path).await.is_ok_and(|meta| meta.len() == image.size) {
            return Ok(());
        }
        let io = |error| Fault::io(&format!("keep image {}", image.id), &error);
        let folder = self.places.images();
        fs::create_dir_all(&folder).await.map_err(io)?;
        check_room(&folder, image)?;
        let unfinished = path.with_extension("new");
        let fetched = self.fetch_to(id, image, &unfinished).await;
        if fetched.is_err() {
            // What is there of it is of no use.
            let _ = fs::remove_file(&unfinished).await;
        }
        fetched?;
        fs::rename(&unfinished, &path).await.map_err(io)?;
        crate::durable::sync_parent(&path).map_err(io)
    }

    async fn fetch_to(
        &self,
        id: &str,
        image: &ImageFile,
        path: &std::path::Path,
    ) -> Result<(), Fault> {
        let io = |error| Fault::io(&format!("keep image {}", image.id), &error);
        let mut stream = self.cloud.image(&image.id).await?;
        if stream.size != image.size || stream.sha256 != image.sha256 {
            return Err(damaged(image, "the cloud gives another one"));
        }
        let mut file = File::create(path).await.map_err(io)?;
        let (mut sum, mut done, mut told) = (Context::new(&SHA256), 0_u64, 0_u64);
        while let Some(bytes) = stream.next().await? {
            done += bytes.len() as u64;
            if done > image.size {
                return Err(damaged(image, "it is too long"));
            }
            sum.update(&bytes);
            file.write_all(&bytes).await.map_err(io)?;
            if done - told >= STEP {
                told = done;
                self.tell(id, "image", done, image.size);
            }
        }
        let hex =
            sum.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        if done != image.size || hex != image.sha256 {
            return Err(damaged(image, "what came has another sum or size"));
        }
        file.sync_all().await.map_err(io)
    }
}

fn damaged(image: &ImageFile, why: &str) -> Fault {
    let message = format!("image {} cannot be fetched: {why}.", image.id);
    Fault::new("BadImage", message, "Import the image again if this stays.")
}

/// Refuses before the file system is full, so that nothing else suffers.
fn check_room(folder: &std::path::Path, image: &ImageFile) -> Result<(), Fault> {
    let stat = rustix::fs::statvfs(folder);
    let stat = stat.map_err(|e| Fault::io("look for room", &e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < image.size.saturating_add(RESERVE) {
        let (id, size) = (&image.id, image.size);
        let folder = folder.display();
        return Err(Fault::full(format!(
            "image {id} has {size} bytes, {folder} has {free} free, of which {RESERVE} stay."
        )));
    }
    Ok(())
}
