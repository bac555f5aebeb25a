//! `DescribeRegions` and `DescribeZones`: there is one region, with the zones of its configuration.

use super::{list, look};
use crate::catalogue::instance_types;
use crate::ecs::dispatch::{Caller, Reply, Work};
use crate::ecs::refusal::Refusal;
use crate::ecs::wire::params::Params;
use serde_json::{Value, json};

/// What can be made in a zone, in ECS's words.
const RESOURCES: [&str; 4] = ["Instance", "Disk", "VSwitch", "IoOptimized"];
/// The disk categories that can be asked for.
pub const CATEGORIES: [&str; 4] = ["cloud", "cloud_efficiency", "cloud_ssd", "cloud_essd"];

pub fn describe_regions(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    any_language(params)?;
    params.one_of("ResourceType", &["instance", "disk"])?;
    let (place, host) = (caller.place.clone(), caller.host.clone());
    Ok(look(move |_| {
        let region = json!({
            "RegionId": place.region,
            "LocalName": place.name,
            "RegionEndpoint": host,
            "Status": "available",
        });
        let mut reply = Reply::new();
        list(&mut reply, "Regions", "Region", vec![region]);
        Ok(reply)
    }))
}

pub fn describe_zones(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    any_language(params)?;
    params.one_of("SpotStrategy", &["NoSpot"])?;
    let verbose = params.boolean("Verbose")?.unwrap_or(true);
    let place = caller.place.clone();
    Ok(look(move |_| {
        let zones = place.zones.iter().map(|zone| describe_zone(zone, verbose));
        let mut reply = Reply::new();
        list(&mut reply, "Zones", "Zone", zones.collect());
        Ok(reply)
    }))
}

fn describe_zone(id: &str, verbose: bool) -> Value {
    if !verbose {
        return json!({"ZoneId": id, "LocalName": id, "ZoneType": "AvailabilityZone"});
    }
    let types: Vec<&str> = instance_types().map(|one| one.name.as_str()).collect();
    json!({
        "ZoneId": id,
        "LocalName": id,
        "ZoneType": "AvailabilityZone",
        "AvailableResourceCreation": {"ResourceTypes": RESOURCES},
        "AvailableInstanceTypes": {"InstanceTypes": types},
        "AvailableDiskCategories": {"DiskCategories": CATEGORIES},
    })
}

/// What tools send along: names are in one language, and everything is paid as it is used.
fn any_language(params: &mut Params) -> Result<(), Refusal> {
    params.one_of("AcceptLanguage", &["zh-CN", "en-US", "ja"])?;
    params.one_of("InstanceChargeType", &["PostPaid"])?;
    Ok(())
}
