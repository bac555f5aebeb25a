//! `RunInstances`, and `CreateInstance`, whose instance is stopped at first.

use crate::catalogue::{Architecture, Category, Form, InstanceType, instance_type};
use crate::ecs::dispatch::{Caller, Done, Reply, Work, World};
use crate::ecs::refusal::Refusal;
use crate::ecs::wire::params::Params;
use crate::model::{Limits, Tag};
use crate::plan::Context;
use crate::plan::create::{NewDisk, NewInstances};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The most instances in one request, as at ECS.
const AMOUNT: u64 = 100;
/// The longest user data in bytes, before base64.
const USER_DATA: usize = 32 << 10;

pub fn run(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let amount = params.integer("Amount", 1..=AMOUNT)?.unwrap_or(1);
    let at_least = params.integer("MinAmount", 1..=amount)?.unwrap_or(amount);
    let suffix = params.boolean("UniqueSuffix")?.unwrap_or(false);
    let mut wanted = read(params, caller, true)?;
    wanted.groups.extend(params.texts("SecurityGroupIds")?);
    if let [only] = wanted.names.as_slice() {
        wanted.names = names(only, amount, suffix && amount > 1);
    }
    wanted.at_least = usize::try_from(at_least).unwrap_or(usize::MAX);
    Ok(work(wanted, |ids| {
        let mut reply = Reply::new();
        let ids = ids.iter().map(|id| id.as_str().into()).collect();
        super::list(&mut reply, "InstanceIdSets", "InstanceIdSet", ids);
        reply
    }))
}

pub fn create(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    Ok(work(read(params, caller, false)?, |ids| {
        let mut reply = Reply::new();
        reply.insert("InstanceId".into(), ids.first().map_or("", String::as_str).into());
        reply
    }))
}

fn work(wanted: NewInstances, reply: fn(&[String]) -> Reply) -> Work {
    let plan = Box::new(move |world: World<'_>, context: &mut Context<'_>| {
        let (draft, ids) = crate::plan::create::create(world.view, world.alive, &wanted, context)?;
        let reply = reply(&ids);
        Ok((draft, Done { ids, reply }))
    });
    Work::Change { plan, again: reply }
}

/// Names for `amount` instances; with a suffix they are numbered from 001.
fn names((name, host): &(String, String), amount: u64, suffix: bool) -> Vec<(String, String)> {
    let one = |number: u64| match suffix {
        true => {
            let with = |text: &str| match text {
                "" => String::new(),
                text => format!("{text}{number:03}"),
            };
            (with(name), with(host))
        }
        false => (name.clone(), host.clone()),
    };
    (1..=amount).map(one).collect()
}

fn read(params: &mut Params, caller: &Caller, start: bool) -> Result<NewInstances, Refusal> {
    only_what_there_is(params, caller)?;
    let type_id = params.needed("InstanceType")?;
    let one = usable(&type_id)?;
    let name = params.name("InstanceName", 2..=128)?.unwrap_or_default();
    let host = host_name(params)?;
    let system_disk = params.object("SystemDisk", |disk| new_disk(disk, true))?;
    let address = params.text("PrivateIpAddress").map(|text| {
        text.parse().map_err(|_| Refusal::invalid("PrivateIpAddress", "it is no IPv4 address"))
    });
    Ok(NewInstances {
        tenant: caller.tenant.clone(),
        names: vec![(name, host)],
        at_least: 1,
        description: params.name("Description", 2..=256)?.unwrap_or_default(),
        limits: limits(one),
        architecture: match one.architecture {
            Architecture::X86 => "x86_64".to_owned(),
            Architecture::Arm => "arm64".to_owned(),
        },
        type_id,
        image: params.needed("ImageId")?,
        vswitch: params.text("VSwitchId"),
        groups: params.text("SecurityGroupId").into_iter().collect(),
        address: address.transpose()?,
        system_disk,
        data_disks: params.objects("DataDisk", |disk| new_disk(disk, false))?,
        tags: tags(params)?,
        user_data: user_data(params)?,
        deletion_protection: params.boolean("DeletionProtection")?.unwrap_or(false),
        ssh_keys: Vec::new(),
        key_pair: None,
        start,
        token: None,
    })
}

/// Choices of which this cloud has one: whoever names it gets it, whoever names another is refused.
fn only_what_there_is(params: &mut Params, caller: &Caller) -> Result<(), Refusal> {
    params.one_of("InstanceChargeType", &["PostPaid"])?;
    params.one_of("InternetChargeType", &["PayByTraffic", "PayByBandwidth"])?;
    // There are no public addresses: a limit to them is none, and bandwidth cannot be bought.
    params.integer("InternetMaxBandwidthOut", 0..=0)?;
    params.integer("InternetMaxBandwidthIn", 0..=u64::MAX)?;
    params.one_of("IoOptimized", &["optimized"])?;
    params.one_of("SpotStrategy", &["NoSpot"])?;
    params.one_of("SecurityEnhancementStrategy", &["Deactive"])?;
    params.one_of("HttpEndpoint", &["enabled"])?;
    params.one_of("HttpTokens", &["optional"])?;
    params.one_of("Tenancy", &["default"])?;
    let zones: Vec<&str> = caller.place.zones.iter().map(String::as_str).collect();
    params.one_of("ZoneId", &zones)?;
    Ok(())
}

/// The type, if this cloud has what it is made of.
fn usable(name: &str) -> Result<&'static InstanceType, Refusal> {
    let one = instance_type(name).ok_or_else(|| {
        let message = format!("The specified InstanceType {name:?} does not exist.");
        Refusal::bad("InvalidInstanceType.ValueNotSupported", message)
            .recommend("DescribeInstanceTypes lists the types.")
    })?;
    let lacking = match one {
        InstanceType { form: Form::Board, .. } => "a bare-metal board",
        InstanceType { accelerator: Some(_), .. } => "an accelerator",
        InstanceType { local_disks: Some(_), .. } => "local disks",
        _ => return Ok(one),
    };
    let message = format!("The type {name} needs {lacking}, and no server has that to give.");
    Err(Refusal::denied("OperationDenied.NoStock", message))
}

fn limits(one: &InstanceType) -> Limits {
    Limits {
        vcpus: one.vcpus,
        memory_mib: one.memory_mib,
        nic_packets: Some(one.packets),
        nic_bits: Some(one.bandwidth_kbit.base.saturating_mul(1000)),
        disk_iops: one.disk_iops.map(|limit| limit.base),
    }
}

/// A name that a guest and the segment's DNS can use.
fn host_name(params: &mut Params) -> Result<String, Refusal> {
    let Some(name) = params.name("HostName", 2..=63)? else { return Ok(String::new()) };
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let whole = |label: &str| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-');
    if name.chars().all(letters) && name.split('.').all(whole) {
        return Ok(name);
    }
    let why = "it must be letters, digits and '-', in parts with '.' between them";
    Err(Refusal::invalid("HostName", why))
}

fn new_disk(disk: &mut Params, system: bool) -> Result<NewDisk, Refusal> {
    let gib = disk.integer("Size", 1..=65_536)?;
    if gib.is_none() && !system {
        return Err(Refusal::missing(&disk.full("Size")));
    }
    let level = disk.text("PerformanceLevel");
    let category = match (disk.text("Category"), level.as_deref()) {
        (None, None) => Category::essd(gib.unwrap_or(20)),
        (None, level) => known(disk, "cloud_essd", level)?,
        (Some(name), None) if name == "cloud_essd" => Category::essd(gib.unwrap_or(20)),
        (Some(name), level) => known(disk, &name, level)?,
    };
    let (least, most) = category.sizes();
    if let Some(gib) = gib.filter(|gib| !(least..=most).contains(gib)) {
        let message =
            format!("A disk of category {category} has {least} to {most} GiB, and not {gib}.");
        let code =
            if gib < least { "InvalidDiskSize.TooSmall" } else { "InvalidDiskSize.TooLarge" };
        return Err(Refusal::denied(code, message));
    }
    let delete_with_instance = !system && disk.boolean("DeleteWithInstance")? == Some(false);
    Ok(NewDisk {
        name: disk.name("DiskName", 2..=128)?.unwrap_or_default(),
        description: disk.name("Description", 2..=256)?.unwrap_or_default(),
        category: category.to_string(),
        gib,
        delete_with_instance: !delete_with_instance,
    })
}

fn known(disk: &Params, name: &str, level: Option<&str>) -> Result<Category, Refusal> {
    Category::parse(name, level).ok_or_else(|| {
        let message = match level {
            Some(level) => format!("There is no disk category {name:?} of level {level:?}."),
            None => format!("There is no disk category {name:?}."),
        };
        let code = if disk.full("").starts_with("SystemDisk") {
            "InvalidSystemDiskCategory.ValueNotSupported"
        } else {
            "InvalidDataDiskCategory.ValueNotSupported"
        };
        Refusal::bad(code, message)
    })
}

fn tags(params: &mut Params) -> Result<Vec<Tag>, Refusal> {
    let tags = params.objects("Tag", |tag| {
        let key = tag.name("Key", 1..=128)?.ok_or_else(|| Refusal::missing(&tag.full("Key")))?;
        Ok(Tag { key, value: tag.name("Value", 1..=128)?.unwrap_or_default() })
    })?;
    if tags.len() > 20 {
        return Err(Refusal::invalid("Tag", "an instance may have 20 tags"));
    }
    let mut keys: Vec<&str> = tags.iter().map(|tag| tag.key.as_str()).collect();
    keys.sort_unstable();
    if keys.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Refusal::bad("InvalidTagKey.Duplicated", "A tag's key is given twice."));
    }
    Ok(tags)
}

fn user_data(params: &mut Params) -> Result<String, Refusal> {
    let Some(text) = params.text("UserData") else { return Ok(String::new()) };
    let bytes = STANDARD.decode(text.trim());
    let bytes = bytes.map_err(|_| Refusal::invalid("UserData", "it is no base64"))?;
    if bytes.len() > USER_DATA {
        let message = format!("User data has at most {USER_DATA} bytes before base64.");
        return Err(Refusal::bad("InvalidUserData.SizeExceeded", message));
    }
    let why = "it is not UTF-8; compressed user data is not supported";
    String::from_utf8(bytes).map_err(|_| Refusal::invalid("UserData", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rates_of_a_type_are_in_the_card_s_units() {
        // 1.5 Gbit/s, 500,000 packets/s and 20,000 IOPS in the table.
        let of = |name| limits(instance_type(name).unwrap());
        let g6 = of("ecs.g6.xlarge");
        assert_eq!((g6.nic_bits, g6.nic_packets), (Some(1_500_000_000), Some(500_000)));
        assert_eq!(g6.disk_iops, Some(20_000));
        assert_eq!(of("ecs.g5.large").disk_iops, None, "its disks have limits of their own only");
    }
}
