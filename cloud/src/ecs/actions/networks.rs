//! Networks as they are seen: VPCs, vSwitches, security groups and interfaces, under both versions of the API.

use super::instances::second;
use super::{list, look, tag_wishes};
use crate::ecs::dispatch::{Caller, Reply, Work};
use crate::ecs::paging::Page;
use crate::ecs::refusal::Refusal;
use crate::ecs::wire::params::Params;
use crate::model::{Eni, SecurityGroup, VSwitch, View, Vpc};
use serde_json::{Value, json};
use std::sync::Arc;

pub fn describe_vpcs(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let page = Page::read(params)?;
    let ids = params.json_texts("VpcId")?;
    let is_default = params.boolean("IsDefault")?;
    let (name, tags) = (params.text("VpcName"), tag_wishes(params)?);
    let caller = caller.clone();
    Ok(look(move |view| {
        let kept = view.vpcs.iter().filter(|vpc| {
            vpc.tenant == caller.tenant
                && ids.as_ref().is_none_or(|ids| ids.contains(&vpc.id))
                && is_default.is_none_or(|wish| wish == vpc.is_default)
                && name.as_ref().is_none_or(|name| *name == vpc.name)
                && tags.is_empty()
        });
        let mut reply = Reply::new();
        let place = |vpc: &Arc<Vpc>| (vpc.created, vpc.id.clone());
        let show = |vpc: &Arc<Vpc>| show_vpc(view, vpc, &caller);
        let shown = page.cut(kept.cloned().collect(), place, &mut reply, show);
        list(&mut reply, "Vpcs", "Vpc", shown);
        Ok(reply)
    }))
}

fn show_vpc(view: &View, vpc: &Vpc, caller: &Caller) -> Value {
    let within = view.vswitches.iter().filter(|vswitch| vswitch.vpc == vpc.id);
    let vswitches: Vec<&str> = within.map(|vswitch| vswitch.id.as_str()).collect();
    json!({
        "VpcId": vpc.id,
        "VpcName": vpc.name,
        "Description": "",
        "RegionId": caller.place.region,
        "CidrBlock": format!("{}/{}", vpc.network, vpc.prefix_len),
        "IsDefault": vpc.is_default,
        "Status": "Available",
        "CreationTime": second(vpc.created),
        "VRouterId": "",
        "VSwitchIds": {"VSwitchId": vswitches},
        "UserCidrs": {"UserCidr": []},
    })
}

pub fn describe_vswitches(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let page = Page::read(params)?;
    let ids = params.json_texts("VSwitchId")?;
    let (vpc, zone) = (params.text("VpcId"), params.text("ZoneId"));
    let is_default = params.boolean("IsDefault")?;
    let (name, tags) = (params.text("VSwitchName"), tag_wishes(params)?);
    let tenant = caller.tenant.clone();
    Ok(look(move |view| {
        let kept = view.vswitches.iter().filter(|one| {
            one.tenant == tenant
                && ids.as_ref().is_none_or(|ids| ids.contains(&one.id))
                && vpc.as_ref().is_none_or(|vpc| *vpc == one.vpc)
                && zone.as_ref().is_none_or(|zone| *zone == one.zone)
                && is_default.is_none_or(|wish| wish == one.is_default)
                && name.as_ref().is_none_or(|name| *name == one.name)
                && tags.is_empty()
        });
        let mut reply = Reply::new();
        let place = |one: &Arc<VSwitch>| (one.created, one.id.clone());
        let show = |one: &Arc<VSwitch>| show_vswitch(view, one);
        let shown = page.cut(kept.cloned().collect(), place, &mut reply, show);
        list(&mut reply, "VSwitches", "VSwitch", shown);
        Ok(reply)
    }))
}

fn show_vswitch(view: &View, one: &VSwitch) -> Value {
    let used = view.enis.iter().filter(|eni| eni.vswitch == one.id).count();
    json!({
        "VSwitchId": one.id,
        "VSwitchName": one.name,
        "Description": "",
        "VpcId": one.vpc,
        "ZoneId": one.zone,
        "CidrBlock": format!("{}/{}", one.network, one.prefix_len),
        "IsDefault": one.is_default,
        "Status": "Available",
        "CreationTime": second(one.created),
        "AvailableIpAddressCount": one.host_addresses().count().saturating_sub(used),
        "ResourceGroupId": "",
    })
}

pub fn describe_groups(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let page = Page::read(params)?;
    let mut ids = params.json_texts("SecurityGroupIds")?;
    if let Some(id) = params.text("SecurityGroupId") {
        ids.get_or_insert_default().push(id);
    }
    let (vpc, name) = (params.text("VpcId"), params.text("SecurityGroupName"));
    params.one_of("NetworkType", &["vpc"])?;
    params.one_of("SecurityGroupType", &["normal"])?;
    let count = params.boolean("IsQueryEcsCount")?.unwrap_or(true);
    let tags = tag_wishes(params)?;
    let caller = caller.clone();
    Ok(look(move |view| {
        let kept = view.groups.iter().filter(|group| {
            group.tenant == caller.tenant
                && ids.as_ref().is_none_or(|ids| ids.contains(&group.id))
                && vpc.as_ref().is_none_or(|vpc| *vpc == group.vpc)
                && name.as_ref().is_none_or(|name| *name == group.name)
                && tags.is_empty()
        });
        let mut reply = Reply::new();
        reply.insert("RegionId".into(), caller.place.region.as_str().into());
        let place = |group: &Arc<SecurityGroup>| (group.created, group.id.clone());
        let show = |group: &Arc<SecurityGroup>| show_group(view, group, count);
        let shown = page.cut(kept.cloned().collect(), place, &mut reply, show);
        list(&mut reply, "SecurityGroups", "SecurityGroup", shown);
        Ok(reply)
    }))
}

fn show_group(view: &View, group: &SecurityGroup, count: bool) -> Value {
    let mut shown = json!({
        "SecurityGroupId": group.id,
        "SecurityGroupName": group.name,
        "Description": group.description,
        "VpcId": group.vpc,
        "SecurityGroupType": "normal",
        "CreationTime": second(group.created),
        "ServiceManaged": false,
        "ResourceGroupId": "",
        "Tags": {"Tag": []},
    });
    if count {
        let within = view.instances.iter().filter(|one| one.groups.contains(&group.id));
        shown["EcsCount"] = within.count().into();
    }
    shown
}

pub fn describe_interfaces(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let page = Page::read(params)?;
    let ids = params.texts("NetworkInterfaceId")?;
    let (instance, vpc) = (params.text("InstanceId"), params.text("VpcId"));
    let (vswitch, address) = (params.text("VSwitchId"), params.text("PrimaryIpAddress"));
    let tags = tag_wishes(params)?;
    let tenant = caller.tenant.clone();
    Ok(look(move |view| {
        let kept = view.enis.iter().filter(|eni| {
            eni.tenant == tenant
                && (ids.is_empty() || ids.contains(&eni.id))
                && instance.as_ref().is_none_or(|id| eni.instance.as_ref() == Some(id))
                && vpc.as_ref().is_none_or(|vpc| *vpc == eni.vpc)
                && vswitch.as_ref().is_none_or(|vswitch| *vswitch == eni.vswitch)
                && address.as_ref().is_none_or(|address| *address == eni.ipv4.to_string())
                && tags.is_empty()
        });
        let mut reply = Reply::new();
        let place = |eni: &Arc<Eni>| (eni.created, eni.id.clone());
        let shown = page.cut(kept.cloned().collect(), place, &mut reply, |eni| show_eni(view, eni));
        list(&mut reply, "NetworkInterfaceSets", "NetworkInterfaceSet", shown);
        Ok(reply)
    }))
}

fn show_eni(view: &View, eni: &Eni) -> Value {
    let zone = view.vswitches.get(&eni.vswitch).map_or("", |vswitch| vswitch.zone.as_str());
    let address = eni.ipv4.to_string();
    json!({
        "NetworkInterfaceId": eni.id,
        "NetworkInterfaceName": "",
        "Description": "",
        "Type": if eni.primary { "Primary" } else { "Secondary" },
        "Status": if eni.instance.is_some() { "InUse" } else { "Available" },
        "InstanceId": eni.instance.as_deref().unwrap_or(""),
        "VpcId": eni.vpc,
        "VSwitchId": eni.vswitch,
        "ZoneId": zone,
        "MacAddress": eni.mac,
        "PrivateIpAddress": address,
        "PrivateIpSets": {"PrivateIpSet": [{"PrivateIpAddress": address, "Primary": true}]},
        "SecurityGroupIds": {"SecurityGroupId": eni.groups},
        "CreationTime": second(eni.created),
        "ResourceGroupId": "",
        "Tags": {"Tag": []},
    })
}
