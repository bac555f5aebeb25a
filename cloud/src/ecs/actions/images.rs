//! `DescribeImages`: the cloud's own images, which everybody sees, and the tenant's.

use super::instances::second;
use super::{fits, list, look, tag_wishes};
use crate::ecs::dispatch::{Caller, Reply, Work};
use crate::ecs::paging::Page;
use crate::ecs::refusal::Refusal;
use crate::ecs::wire::params::Params;
use crate::model::{Image, ImageState};
use serde_json::{Value, json};
use std::sync::Arc;

pub fn describe(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let page = Page::read(params)?;
    let ids = params.json_texts("ImageId")?;
    let name = params.text("ImageName");
    let owner = params.one_of("ImageOwnerAlias", &["system", "self"])?;
    let architecture = params.one_of("Architecture", &["x86_64", "arm64", "i386"])?;
    let os = params.one_of("OSType", &["linux", "windows"])?;
    let public = params.boolean("IsPublic")?;
    let states = params.text("Status").unwrap_or_else(|| "Available".to_owned());
    let tags = tag_wishes(params)?;
    let caller = caller.clone();
    Ok(look(move |view| {
        let kept = view.images.iter().filter(|image| {
            let own = image.tenant.as_ref() == Some(&caller.tenant);
            (own || image.tenant.is_none())
                && ids.as_ref().is_none_or(|ids| ids.contains(&image.id))
                && name.as_ref().is_none_or(|name| fits(name, &image.name))
                && owner.as_ref().is_none_or(|alias| (alias == "self") == own)
                && architecture.as_ref().is_none_or(|wish| *wish == image.architecture)
                && os.as_ref().is_none_or(|wish| *wish == image.os_type)
                && public.is_none_or(|wish| wish == image.tenant.is_none())
                && states.split(',').any(|state| state == status(image))
                // Images have no tags.
                && tags.is_empty()
        });
        let mut reply = Reply::new();
        reply.insert("RegionId".into(), caller.place.region.as_str().into());
        let place = |image: &Arc<Image>| (image.created, image.id.clone());
        let shown = page.cut(kept.cloned().collect(), place, &mut reply, |image| show(image));
        list(&mut reply, "Images", "Image", shown);
        Ok(reply)
    }))
}

fn status(image: &Image) -> &'static str {
    match image.state {
        ImageState::Creating => "Creating",
        ImageState::Available => "Available",
    }
}

fn show(image: &Image) -> Value {
    let available = image.state == ImageState::Available;
    let bytes = image.disk.as_ref().map_or(0, |disk| disk.size);
    json!({
        "ImageId": image.id,
        "ImageName": image.name,
        "Description": image.description,
        "Architecture": image.architecture,
        "OSType": image.os_type,
        "OSName": image.os_name,
        "OSNameEn": image.os_name,
        "Platform": image.os_name,
        "Size": bytes.div_ceil(1 << 30),
        "Status": status(image),
        "Progress": if available { "100%" } else { "0%" },
        "Usable": available,
        "IsPublic": image.tenant.is_none(),
        "IsCopied": false,
        "IsSubscribed": false,
        "IsSelfShared": "",
        "IsSupportCloudinit": true,
        "IsSupportIoOptimized": true,
        "ImageOwnerAlias": if image.tenant.is_some() { "self" } else { "system" },
        "ImageVersion": "",
        "ProductCode": "",
        "Usage": "none",
        "CreationTime": second(image.created),
        "DiskDeviceMappings": {"DiskDeviceMapping": []},
        "Tags": {"Tag": []},
    })
}
