//! `DescribeDisks`.

use super::instances::second;
use super::{list, look, tag_wishes};
use crate::catalogue::Category;
use crate::ecs::dispatch::{Caller, Reply, Work};
use crate::ecs::paging::Page;
use crate::ecs::refusal::Refusal;
use crate::ecs::wire::params::Params;
use crate::model::{Disk, View};
use serde_json::{Value, json};
use std::sync::Arc;

pub fn describe(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let page = Page::read(params)?;
    let ids = params.json_texts("DiskIds")?;
    let instance = params.text("InstanceId");
    let kind = params.one_of("DiskType", &["all", "system", "data"])?;
    let category = params.text("Category").filter(|category| category != "all");
    let status = params.one_of("Status", &["In_use", "Available", "All"])?;
    let name = params.text("DiskName");
    params.one_of("DiskChargeType", &["PostPaid"])?;
    let zone = params.text("ZoneId");
    let tags = tag_wishes(params)?;
    let caller = caller.clone();
    Ok(look(move |view| {
        let kept = view.disks.iter().filter(|disk| {
            disk.tenant == caller.tenant
                && ids.as_ref().is_none_or(|ids| ids.contains(&disk.id))
                && instance.as_ref().is_none_or(|id| disk.instance.as_ref() == Some(id))
                && kind.as_ref().is_none_or(|kind| kind == "all" || kind == self::kind(disk))
                && category.as_ref().is_none_or(|wish| *wish == self::category(disk).name())
                && status.as_ref().is_none_or(|wish| wish == "All" || wish == self::status(disk))
                && name.as_ref().is_none_or(|name| *name == disk.name)
                && zone.as_ref().is_none_or(|zone| *zone == self::zone(view, disk, &caller))
                // Disks have no tags.
                && tags.is_empty()
        });
        let mut reply = Reply::new();
        let place = |disk: &Arc<Disk>| (disk.created, disk.id.clone());
        let show = |disk: &Arc<Disk>| show(view, disk, &caller);
        let shown = page.cut(kept.cloned().collect(), place, &mut reply, show);
        list(&mut reply, "Disks", "Disk", shown);
        Ok(reply)
    }))
}

fn kind(disk: &Disk) -> &'static str {
    if disk.system { "system" } else { "data" }
}

fn status(disk: &Disk) -> &'static str {
    if disk.instance.is_some() { "In_use" } else { "Available" }
}

/// What a release before had not known is shown as the plainest.
fn category(disk: &Disk) -> Category {
    disk.category.parse().unwrap_or(Category::Cloud)
}

fn zone(view: &View, disk: &Disk, caller: &Caller) -> String {
    let instance = disk.instance.as_ref().and_then(|id| view.instances.get(id));
    let first = || caller.place.zones.first().cloned().unwrap_or_default();
    instance.map_or_else(first, |instance| instance.zone.clone())
}

fn show(view: &View, disk: &Disk, caller: &Caller) -> Value {
    let category = category(disk);
    let most = category.performance(disk.gib());
    // The guest's own names for virtio disks.
    let letter = char::from(b'a' + u8::try_from(disk.index.min(25)).unwrap_or(25));
    let device = disk.instance.as_ref().map_or(String::new(), |_| format!("/dev/xvd{letter}"));
    let mut shown = json!({
        "DiskId": disk.id,
        "DiskName": disk.name,
        "Description": disk.description,
        "RegionId": caller.place.region,
        "ZoneId": zone(view, disk, caller),
        "Category": category.name(),
        "Size": disk.gib(),
        "Type": kind(disk),
        "Status": status(disk),
        "Device": device,
        "InstanceId": disk.instance.as_deref().unwrap_or(""),
        "ImageId": disk.image.as_deref().unwrap_or(""),
        "SerialNumber": disk.id.trim_start_matches("d-"),
        "DeleteWithInstance": disk.delete_with_instance,
        "DeleteAutoSnapshot": true,
        "EnableAutoSnapshot": false,
        "EnableAutomatedSnapshotPolicy": false,
        "Encrypted": false,
        "Portable": !disk.system,
        "DiskChargeType": "PostPaid",
        "MultiAttach": "Disabled",
        "IOPS": most.iops,
        "Throughput": most.megabytes,
        "CreationTime": second(disk.created),
        "ExpiredTime": "2099-12-31T15:59Z",
        "SourceSnapshotId": "",
        "ProductCode": "",
        "Attachments": {"Attachment": []},
        "MountInstances": {"MountInstance": []},
        "OperationLocks": {"OperationLock": []},
        "Tags": {"Tag": []},
    });
    if let Some(instance) = &disk.instance {
        let attachment = json!({"InstanceId": instance, "Device": device});
        shown["Attachments"] = json!({"Attachment": [attachment]});
    }
    if let Some(level) = category.level() {
        shown["PerformanceLevel"] = level.into();
    }
    shown
}
