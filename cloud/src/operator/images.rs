//! Images: made without files, then given them one by one, then available.

use super::{Answer, Operator, describe};
use crate::model::{Draft, Image, ImageFile, ImageState, View};
use crate::plan::{Refusal as Planned, tenancy};
use crate::refusal::Refusal;
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use bixi_api::agent::SHA256_HEADER;
use bixi_api::operator::{ImageCreate, ImageDescription};
use std::sync::atomic::Ordering;

/// All images.
#[utoipa::path(get, path = "/v1/images", responses((status = 200, body = Vec<ImageDescription>)))]
pub(super) async fn list(State(operator): State<Operator>) -> Answer<Vec<ImageDescription>> {
    let view = operator.control.view();
    Ok(Json(view.images.iter().map(|image| describe::image(image)).collect()))
}

/// A new image, without its files.
#[utoipa::path(post, path = "/v1/images", request_body = ImageCreate,
    responses((status = 200, body = ImageDescription)))]
pub(super) async fn create(
    State(operator): State<Operator>,
    create: Result<Json<ImageCreate>, JsonRejection>,
) -> Answer<ImageDescription> {
    let Json(create) = create?;
    if !matches!(create.architecture.as_str(), "x86_64" | "arm64") {
        return Err(Refusal::invalid("The architecture is x86_64 or arm64."));
    }
    if !(1..=128).contains(&create.name.len()) {
        return Err(Refusal::invalid("The name of an image has 1 to 128 bytes."));
    }
    let plan = operator.control.change(|view, _, context| {
        let owner = create.tenant.as_deref().map(|id| tenancy::tenant(view, id)).transpose()?;
        let owner = owner.map(|tenant| tenant.id.clone());
        if view.images.iter().any(|image| image.name == create.name && image.tenant == owner) {
            return Err(Planned::Exists { what: "image", name: create.name.clone() });
        }
        let image = Image {
            id: context.ids.id("m"),
            tenant: owner,
            name: create.name.clone(),
            description: create.description.clone(),
            architecture: create.architecture.clone(),
            os_type: "linux".to_owned(),
            os_name: create.os_name.clone(),
            created: context.now,
            state: ImageState::Creating,
            disk: None,
            kernel: None,
            initrd: None,
            cmdline: create.cmdline.clone(),
        };
        let mut draft = Draft::default();
        draft.create(&image);
        Ok((draft, image))
    });
    Ok(Json(describe::image(&plan.await.map_err(Refusal::from)?)))
}

/// A file of an image (`disk`, `kernel`, `initrd`), or `available`: from then on instances can be made of it.
#[utoipa::path(put, path = "/v1/images/{id}/{part}", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = ImageDescription)))]
pub(super) async fn put(
    State(operator): State<Operator>,
    Path((id, part)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer<ImageDescription> {
    if part == "available" {
        return make_available(operator, &id).await;
    }
    if !matches!(part.as_str(), "disk" | "kernel" | "initrd") {
        return Err(Refusal::not_found("part of an image", &part));
    }
    being_made(&operator.control.view(), &id)?;
    let sha256 = headers.get(SHA256_HEADER).and_then(|value| value.to_str().ok());
    let digit = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    let sha256 = sha256.filter(|text| text.len() == 64 && text.bytes().all(digit));
    let missing = || {
        Refusal::invalid(format!(
            "Say the file's SHA-256 in `{SHA256_HEADER}`, in 64 lower-case digits."
        ))
    };
    let sha256 = sha256.ok_or_else(missing)?.to_owned();
    let file_id = format!("{id}.{part}");
    let upload = operator.uploads.fetch_add(1, Ordering::Relaxed);
    let size = operator.images.keep(&file_id, &sha256, upload, body).await.map_err(|error| {
        let status = match error {
            crate::images::ImageError::Io { .. } => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::BAD_REQUEST,
        };
        Refusal::new(status, "UploadFailed", error.to_string(), "")
    })?;
    let file = ImageFile { id: file_id, size, sha256 };
    let plan = operator.control.change(|view, _, _| {
        let mut image = being_made(view, &id)?.clone();
        match part.as_str() {
            "disk" => image.disk = Some(file.clone()),
            "kernel" => image.kernel = Some(file.clone()),
            _ => image.initrd = Some(file.clone()),
        }
        let mut draft = Draft::default();
        draft.put(view, &image);
        Ok((draft, image))
    });
    Ok(Json(describe::image(&plan.await.map_err(Refusal::from)?)))
}

async fn make_available(operator: Operator, id: &str) -> Answer<ImageDescription> {
    let plan = operator.control.change(|view, _, _| {
        let image = image(view, id)?;
        let unusable = |message: &str| {
            Err(Planned::Invalid { parameter: "image", message: message.to_owned() })
        };
        match (&image.disk, &image.kernel) {
            (None, None) => {
                return unusable("it has neither a disk nor a kernel: upload them first");
            }
            (Some(disk), _) if disk.size == 0 || disk.size % 512 != 0 => {
                return unusable("the size of its disk is no multiple of 512: is it raw?");
            }
            _ => {}
        }
        let image = Image { state: ImageState::Available, ..image.clone() };
        let mut draft = Draft::default();
        draft.put(view, &image);
        Ok((draft, image))
    });
    Ok(Json(describe::image(&plan.await.map_err(Refusal::from)?)))
}

/// Removes an image of which no instance is.
#[utoipa::path(delete, path = "/v1/images/{id}", responses((status = 200)))]
pub(super) async fn remove(State(operator): State<Operator>, Path(id): Path<String>) -> Answer<()> {
    let plan = operator.control.change(|view, _, _| {
        let image = image(view, &id)?.clone();
        let used = view.instances.iter().filter(|instance| instance.image == id).count();
        if used > 0 {
            return Err(Planned::InUse(format!(
                "{used} instances are of image {id}: delete them first"
            )));
        }
        let mut draft = Draft::default();
        draft.delete::<Image>(view, &id);
        Ok((draft, image))
    });
    let image = plan.await.map_err(Refusal::from)?;
    for file in [image.disk, image.kernel, image.initrd].into_iter().flatten() {
        // A file that stays is no harm: nothing refers to it any more.
        if let Err(error) = operator.images.remove(&file.id).await {
            tracing::warn!(file = file.id, %error, "an image's file was left behind");
        }
    }
    Ok(Json(()))
}

fn image<'v>(view: &'v View, id: &str) -> Result<&'v Image, Planned> {
    let image = view.images.get(id).map(AsRef::as_ref);
    image.ok_or_else(|| Planned::NotFound { what: "image", id: id.to_owned() })
}

fn being_made<'v>(view: &'v View, id: &str) -> Result<&'v Image, Planned> {
    let image = image(view, id)?;
    match image.state {
        ImageState::Creating => Ok(image),
        ImageState::Available => Err(Planned::InUse(format!(
            "image {id} is available and does not change any more: make another one"
        ))),
    }
}
