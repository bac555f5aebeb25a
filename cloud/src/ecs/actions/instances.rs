//! Instances as they are seen: `DescribeInstances` and its narrower kin.

use super::{TagWish, fits, has_tags, list, look, tag_wishes};
use crate::catalogue::instance_type;
use crate::ecs::dispatch::{Caller, Reply, Work};
use crate::ecs::paging::Page;
use crate::ecs::refusal::Refusal;
use crate::ecs::wire::params::Params;
use crate::ecs::wire::timestamp::{to_the_minute, to_the_second};
use crate::model::{Eni, Instance, View};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::Arc;

/// The most ids in one request, as at ECS.
const IDS: usize = 100;

#[derive(Default)]
struct Filter {
    ids: Option<Vec<String>>,
    addresses: Option<Vec<String>>,
    status: Option<String>,
    name: Option<String>,
    image: Option<String>,
    type_id: Option<String>,
    family: Option<String>,
    vpc: Option<String>,
    vswitch: Option<String>,
    zone: Option<String>,
    group: Option<String>,
    key_pair: Option<String>,
    tags: Vec<TagWish>,
}

pub fn describe(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    params.one_of("InstanceNetworkType", &["vpc"])?;
    params.one_of("InstanceChargeType", &["PostPaid"])?;
    let page = Page::read(params)?;
    let filter = Filter {
        ids: ids(params, "InstanceIds")?,
        addresses: params.json_texts("PrivateIpAddresses")?,
        status: params
            .one_of("Status", &["Pending", "Starting", "Running", "Stopping", "Stopped"])?,
        name: params.text("InstanceName"),
        image: params.text("ImageId"),
        type_id: params.text("InstanceType"),
        family: params.text("InstanceTypeFamily"),
        vpc: params.text("VpcId"),
        vswitch: params.text("VSwitchId"),
        zone: params.text("ZoneId"),
        group: params.text("SecurityGroupId"),
        key_pair: params.text("KeyPairName"),
        tags: tag_wishes(params)?,
    };
    let caller = caller.clone();
    Ok(look(move |view| {
        let kept = instances(view, &caller.tenant).filter(|one| filter.keeps(view, one)).collect();
        let mut reply = Reply::new();
        let place = |one: &Arc<Instance>| (one.created, one.id.clone());
        let shown = page.cut(kept, place, &mut reply, |one| show(view, one, &caller));
        list(&mut reply, "Instances", "Instance", shown);
        Ok(reply)
    }))
}

/// A list of ids within ECS's limit.
fn ids(params: &mut Params, name: &str) -> Result<Option<Vec<String>>, Refusal> {
    let ids = params.json_texts(name)?;
    if ids.as_ref().is_some_and(|ids| ids.len() > IDS) {
        return Err(Refusal::invalid(name, format!("it has more than {IDS} ids")));
    }
    Ok(ids)
}

/// A tenant's instances.
pub fn instances<'v>(
    view: &'v View,
    tenant: &'v str,
) -> impl Iterator<Item = Arc<Instance>> + use<'v> {
    view.instances.iter().filter(move |one| one.tenant == tenant).cloned()
}

impl Filter {
    fn keeps(&self, view: &View, one: &Instance) -> bool {
        let is =
            |wish: &Option<String>, value: &str| wish.as_ref().is_none_or(|wish| wish == value);
        let among = |wish: &Option<Vec<String>>, value: &dyn Fn(&String) -> bool| {
            wish.as_ref().is_none_or(|wish| wish.iter().any(value))
        };
        among(&self.ids, &|id| *id == one.id)
            && is(&self.status, one.status.name())
            && self.name.as_ref().is_none_or(|pattern| fits(pattern, &one.name))
            && is(&self.image, &one.image)
            && is(&self.type_id, &one.type_id)
            && is(&self.family, family(&one.type_id))
            && is(&self.vpc, &one.vpc)
            && is(&self.vswitch, &one.vswitch)
            && is(&self.zone, &one.zone)
            && self.group.as_ref().is_none_or(|group| one.groups.contains(group))
            && self.key_pair.as_ref().is_none_or(|name| one.key_pair.as_ref() == Some(name))
            && has_tags(&one.tags, &self.tags)
            && (self.addresses.is_none() || {
                let enis = view.enis_of(&one.id);
                among(&self.addresses, &|ip| enis.iter().any(|eni| eni.ipv4.to_string() == *ip))
            })
    }
}

fn family(type_id: &str) -> &'static str {
    instance_type(type_id).map_or("", |one| one.family.as_str())
}

/// Seconds of the model's milliseconds.
pub fn seconds(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX)
}

fn show(view: &View, one: &Instance, caller: &Caller) -> Value {
    let enis = view.enis_of(&one.id);
    let addresses: Vec<String> = enis.iter().map(|eni| eni.ipv4.to_string()).collect();
    let image = view.images.get(&one.image);
    let mut shown = common(one, caller, &addresses);
    for (name, value) in [
        ("InstanceTypeFamily", json!(family(&one.type_id))),
        ("IoOptimized", json!(true)),
        ("OSName", json!(image.map_or("", |image| image.os_name.as_str()))),
        ("OSNameEn", json!(image.map_or("", |image| image.os_name.as_str()))),
        ("OSType", json!(image.map_or("linux", |image| image.os_type.as_str()))),
        ("StartTime", json!(started(one))),
        ("DeletionProtection", json!(one.deletion_protection)),
        ("KeyPairName", json!(one.key_pair.as_deref().unwrap_or(""))),
        ("Tags", json!({"Tag": tags(one)})),
        ("NetworkInterfaces", json!({"NetworkInterface": interfaces(&enis)})),
        ("DeviceAvailable", json!(true)),
        ("Recyclable", json!(false)),
        ("SpotStrategy", json!("NoSpot")),
        ("MetadataOptions", json!({"HttpEndpoint": "enabled", "HttpTokens": "optional"})),
        ("RdmaIpAddress", json!({"IpAddress": []})),
        ("GPUAmount", json!(0)),
        ("GPUSpec", json!("")),
    ] {
        shown[name] = value;
    }
    shown
}

/// The fields that `DescribeInstanceAttribute` documents too.
fn common(one: &Instance, caller: &Caller, addresses: &[String]) -> Value {
    json!({
        "InstanceId": one.id,
        "InstanceName": one.name,
        "Description": one.description,
        "HostName": one.host_name,
        "RegionId": caller.place.region,
        "ZoneId": one.zone,
        "Status": one.status.name(),
        "InstanceType": one.type_id,
        "Cpu": one.limits.vcpus,
        "Memory": one.limits.memory_mib,
        "ImageId": one.image,
        "SerialNumber": one.id.trim_start_matches("i-"),
        "CreationTime": to_the_minute(seconds(one.created)),
        "ExpiredTime": "2099-12-31T15:59Z",
        "InstanceChargeType": "PostPaid",
        "InstanceNetworkType": "vpc",
        "InternetChargeType": "",
        "InternetMaxBandwidthIn": 0,
        "InternetMaxBandwidthOut": 0,
        "StoppedMode": match one.status {
            crate::model::Status::Stopped => "KeepCharging",
            _ => "Not-applicable",
        },
        "CreditSpecification": "",
        "VlanId": "",
        "ClusterId": "",
        "SecurityGroupIds": {"SecurityGroupId": one.groups},
        "VpcAttributes": {
            "VpcId": one.vpc,
            "VSwitchId": one.vswitch,
            "NatIpAddress": "",
            "PrivateIpAddress": {"IpAddress": addresses},
        },
        "PublicIpAddress": {"IpAddress": []},
        "InnerIpAddress": {"IpAddress": []},
        "EipAddress": {"AllocationId": "", "IpAddress": "", "InternetChargeType": ""},
        "OperationLocks": {"LockReason": []},
        "DedicatedHostAttribute": {"DedicatedHostId": "", "DedicatedHostName": ""},
    })
}

fn started(one: &Instance) -> String {
    if one.started == 0 { String::new() } else { to_the_minute(seconds(one.started)) }
}

fn tags(one: &Instance) -> Vec<Value> {
    one.tags.iter().map(|tag| json!({"TagKey": tag.key, "TagValue": tag.value})).collect()
}

fn interfaces(enis: &[Arc<Eni>]) -> Vec<Value> {
    let show = |eni: &Arc<Eni>| {
        let address = eni.ipv4.to_string();
        json!({
            "NetworkInterfaceId": eni.id,
            "MacAddress": eni.mac,
            "PrimaryIpAddress": address,
            "Type": if eni.primary { "Primary" } else { "Secondary" },
            "PrivateIpSets": {"PrivateIpSet": [{"PrivateIpAddress": address, "Primary": true}]},
        })
    };
    enis.iter().map(show).collect()
}

pub fn describe_status(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let page = Page::read(params)?;
    let (ids, zone) = (params.texts("InstanceId")?, params.text("ZoneId"));
    let tenant = caller.tenant.clone();
    Ok(look(move |view| {
        let kept = instances(view, &tenant).filter(|one| {
            (ids.is_empty() || ids.contains(&one.id))
                && zone.as_ref().is_none_or(|z| *z == one.zone)
        });
        let mut reply = Reply::new();
        let place = |one: &Arc<Instance>| (one.created, one.id.clone());
        let show = |one: &Arc<Instance>| json!({"InstanceId": one.id, "Status": one.status.name()});
        let shown = page.cut(kept.collect(), place, &mut reply, show);
        list(&mut reply, "InstanceStatuses", "InstanceStatus", shown);
        Ok(reply)
    }))
}

pub fn describe_attribute(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let (id, caller) = (params.needed("InstanceId")?, caller.clone());
    Ok(look(move |view| {
        let one = one(view, &caller.tenant, &id)?;
        let enis = view.enis_of(&one.id);
        let addresses: Vec<String> = enis.iter().map(|eni| eni.ipv4.to_string()).collect();
        match common(&one, &caller, &addresses) {
            Value::Object(mut reply) => {
                reply.insert("IoOptimized".into(), "optimized".into());
                Ok(reply)
            }
            _ => Err(Refusal::internal()),
        }
    }))
}

pub fn describe_user_data(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let (id, caller) = (params.needed("InstanceId")?, caller.clone());
    Ok(look(move |view| {
        let one = one(view, &caller.tenant, &id)?;
        let mut reply = Reply::new();
        reply.insert("InstanceId".into(), one.id.as_str().into());
        reply.insert("RegionId".into(), caller.place.region.into());
        reply.insert("UserData".into(), STANDARD.encode(&one.user_data).into());
        Ok(reply)
    }))
}

/// A tenant's instance; another's does not exist.
fn one(view: &View, tenant: &str, id: &str) -> Result<Arc<Instance>, Refusal> {
    let found = view.instances.get(id).filter(|one| one.tenant == tenant).cloned();
    found.ok_or_else(|| {
        crate::plan::Refusal::NotFound { what: "instance", id: id.to_owned() }.into()
    })
}

/// When it was, to the second, as disks and tasks show it.
pub fn second(milliseconds: u64) -> String {
    to_the_second(seconds(milliseconds))
}
