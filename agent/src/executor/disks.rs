//! Disks of an instance at the storage process: made, removed.

use super::{Executor, Fault};
use crate::record::Record;
use bixi_api::agent::{Cidata, DesiredInstance};
use bixi_api::client::{ClientError, ControlClient};
use bixi_api::storage::{DiskCreate, DiskDescription};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{interval, sleep};

/// A disk is made from an image of any size in this time.
const CREATION: Duration = Duration::from_secs(6 * 3600);
/// How often the storage process is asked how far it is.
const LOOK: Duration = Duration::from_millis(500);

impl Executor {
    /// Makes every disk of `desired` that is not there.
    pub(super) async fn make(&self, id: &str, desired: &DesiredInstance) -> Result<(), Fault> {
        let folder = self.places.vm(id);
        tokio::fs::create_dir_all(folder.directory())
            .await
            .map_err(|e| Fault::io("make the instance's directory", &e))?;
        for disk in &desired.disks {
            let image = disk.image.as_ref().map(|image| self.image(image)).transpose()?;
            self.make_one(id, &disk.id, Some(disk.size), image).await?;
        }
        if let Some(cidata) = &desired.cidata {
            let bytes = cidata_disk(cidata)?;
            let path = folder.cidata();
            tokio::fs::write(&path, bytes).await.map_err(|e| Fault::io("write cidata", &e))?;
            // What it says may have changed since the last start.
            self.remove_disk(&cidata.disk).await?;
            self.make_one(id, &cidata.disk, None, Some(path.clone())).await?;
            tokio::fs::remove_file(&path).await.map_err(|e| Fault::io("remove cidata", &e))?;
        }
        Ok(())
    }

    async fn make_one(
        &self,
        instance: &str,
        id: &str,
        size: Option<u64>,
        image: Option<PathBuf>,
    ) -> Result<(), Fault> {
        let storage = self.storage();
        loop {
            match look(&storage, id).await? {
                Some(DiskDescription { creation: Some(creation), .. }) => {
                    self.tell(instance, "disk", creation.done, creation.total);
                    sleep(LOOK).await;
                }
                Some(DiskDescription { fault: Some(fault), .. }) => {
                    let hint = "Restore its directory from a copy, or delete the instance.";
                    return Err(Fault::new("DiskDamaged", format!("disk {id}: {fault}."), hint));
                }
                Some(_) => return Ok(()),
                None => break,
            }
        }
        let create = DiskCreate { id: id.to_owned(), size, image };
        let patient = storage.clone().with_deadline(CREATION);
        let made = patient.post::<DiskDescription>("/v1/disks", &create);
        tokio::pin!(made);
        let mut ticks = interval(LOOK);
        loop {
            tokio::select! {
                made = &mut made => return Ok(made.map(drop)?),
                _ = ticks.tick() => {
                    if let Ok(Some(DiskDescription { creation: Some(creation), .. })) =
                        look(&storage, id).await
                    {
                        self.tell(instance, "disk", creation.done, creation.total);
                    }
                }
            }
        }
    }

    /// Removes what is here of an instance, and writes that down.
    pub(super) async fn remove(
        &self,
        id: &str,
        definitions: &[DesiredInstance],
        record: &Record,
    ) -> Result<(), Fault> {
        let mut disks = BTreeSet::new();
        for definition in definitions {
            let own = definition.disks.iter().filter(|disk| disk.delete_with_instance);
            disks.extend(own.map(|disk| &disk.id));
            disks.extend(definition.cidata.iter().map(|cidata| &cidata.disk));
        }
        for disk in disks {
            self.remove_disk(disk).await?;
        }
        if let Some(groups) = &self.groups
            && let Err(error) = groups.remove(id)
        {
            tracing::warn!(instance = id, %error, "its control group stays behind");
        }
        match tokio::fs::remove_dir_all(self.places.vm(id).directory()).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Fault::io("remove the instance's directory", &error));
            }
            _ => {}
        }
        self.write(id, record)
    }

    async fn remove_disk(&self, id: &str) -> Result<(), Fault> {
        match self.storage().delete::<()>(&format!("/v1/disks/{id}")).await {
            Err(ClientError::Refused(refusal)) if refusal.code == "NoSuchDisk" => Ok(()),
            removed => Ok(removed?),
        }
    }
}

async fn look(storage: &ControlClient, id: &str) -> Result<Option<DiskDescription>, Fault> {
    match storage.get::<DiskDescription>(&format!("/v1/disks/{id}")).await {
        Err(ClientError::Refused(refusal)) if refusal.code == "NoSuchDisk" => Ok(None),
        looked => Ok(Some(looked?)),
    }
}

/// The bytes of the NoCloud disk.
fn cidata_disk(cidata: &Cidata) -> Result<Vec<u8>, Fault> {
    let mut files = vec![
        ("meta-data", cidata.meta_data.as_bytes()),
        ("user-data", cidata.user_data.as_bytes()),
    ];
    files.extend(cidata.network_config.as_ref().map(|text| ("network-config", text.as_bytes())));
    bixi_image::cidata::disk(&files).map_err(|error| {
        Fault::new("CidataTooLarge", error.to_string(), "Give less user data.".to_owned())
    })
}
