//! `DescribeInstanceTypes` and `DescribeInstanceTypeFamilies`, from the catalogue alone.

use super::{list, look};
use crate::catalogue::{Architecture, Form, InstanceType, instance_types};
use crate::ecs::dispatch::{Caller, Reply, Work};
use crate::ecs::refusal::Refusal;
use crate::ecs::wire::params::Params;
use serde_json::{Value, json};

/// More types than there are: who names no page gets all, as from ECS.
const ALL: u64 = 1_600;

struct Filter {
    names: Vec<String>,
    families: Vec<String>,
    architecture: Option<String>,
    vcpus: (u64, u64),
    memory_gib: (f64, f64),
    bandwidth: u64,
    packets: u64,
    interfaces: u64,
}

pub fn describe_types(params: &mut Params, _: &Caller) -> Result<Work, Refusal> {
    let most = params.integer("MaxResults", 1..=ALL)?.unwrap_or(ALL);
    let after = params.text("NextToken").unwrap_or_default();
    let filter = read(params)?;
    Ok(look(move |_| {
        let mut kept = instance_types().filter(|one| filter.keeps(one) && one.name > after);
        let shown: Vec<_> = kept.by_ref().take(most as usize).collect();
        let more = kept.next().is_some();
        let next = shown.last().filter(|_| more).map_or("", |last| last.name.as_str());
        let mut reply = Reply::new();
        reply.insert("NextToken".into(), next.into());
        list(&mut reply, "InstanceTypes", "InstanceType", shown.into_iter().map(show).collect());
        Ok(reply)
    }))
}

fn read(params: &mut Params) -> Result<Filter, Refusal> {
    let mut families = params.texts("InstanceTypeFamilies")?;
    families.extend(params.text("InstanceTypeFamily"));
    let mut least = |name| Ok::<_, Refusal>(params.integer(name, 0..=u64::MAX)?.unwrap_or(0));
    let vcpus = least("MinimumCpuCoreCount")?;
    let bandwidth = least("MinimumInstanceBandwidthRx")?.max(least("MinimumInstanceBandwidthTx")?);
    let packets = least("MinimumInstancePpsRx")?.max(least("MinimumInstancePpsTx")?);
    let interfaces = least("MinimumEniQuantity")?;
    let most = params.integer("MaximumCpuCoreCount", 1..=u64::MAX)?.unwrap_or(u64::MAX);
    let memory = params.fraction("MinimumMemorySize")?.unwrap_or(0.0);
    let memory = (memory, params.fraction("MaximumMemorySize")?.unwrap_or(f64::MAX));
    Ok(Filter {
        names: params.texts("InstanceTypes")?,
        families,
        architecture: params.one_of("CpuArchitecture", &["X86", "ARM"])?,
        vcpus: (vcpus, most),
        memory_gib: memory,
        bandwidth,
        packets,
        interfaces,
    })
}

impl Filter {
    fn keeps(&self, one: &InstanceType) -> bool {
        let named = |names: &[String], name: &String| names.is_empty() || names.contains(name);
        let vcpus = u64::from(one.vcpus);
        let memory = memory_gib(one);
        named(&self.names, &one.name)
            && named(&self.families, &one.family)
            && self.architecture.as_ref().is_none_or(|wish| wish == architecture(one))
            && (self.vcpus.0..=self.vcpus.1).contains(&vcpus)
            && (self.memory_gib.0..=self.memory_gib.1).contains(&memory)
            && one.bandwidth_kbit.base >= self.bandwidth
            && one.packets >= self.packets
            && u64::from(one.interfaces) >= self.interfaces
    }
}

fn memory_gib(one: &InstanceType) -> f64 {
    one.memory_mib as f64 / 1024.0
}

fn architecture(one: &InstanceType) -> &'static str {
    match one.architecture {
        Architecture::X86 => "X86",
        Architecture::Arm => "ARM",
    }
}

fn show(one: &InstanceType) -> Value {
    let mut shown = json!({
        "InstanceTypeId": one.name,
        "InstanceTypeFamily": one.family,
        "CpuCoreCount": one.vcpus,
        "MemorySize": memory_gib(one),
        "CpuArchitecture": architecture(one),
        "InstanceBandwidthRx": one.bandwidth_kbit.base,
        "InstanceBandwidthTx": one.bandwidth_kbit.base,
        "InstancePpsRx": one.packets,
        "InstancePpsTx": one.packets,
        "EniQuantity": one.interfaces,
        "DiskQuantity": InstanceType::DISKS,
        "InstanceCategory": match one.form {
            Form::VirtualMachine => "General-purpose",
            Form::Board => "ECS Bare Metal",
        },
        "GPUAmount": 0,
        "GPUSpec": "",
        "LocalStorageAmount": 0,
        "LocalStorageCategory": "",
    });
    if let Some(queues) = one.queues {
        shown["PrimaryEniQueueNumber"] = queues.into();
    }
    if let Some(accelerator) = &one.accelerator {
        shown["GPUSpec"] = accelerator.model.as_str().into();
        shown["GPUAmount"] = accelerator.quarters.div_ceil(4).into();
    }
    if let Some(local) = one.local_disks {
        shown["LocalStorageAmount"] = local.count.into();
        shown["LocalStorageCapacity"] = local.gib.into();
        shown["LocalStorageCategory"] = "local_ssd_pro".into();
    }
    shown
}

pub fn describe_families(params: &mut Params, _: &Caller) -> Result<Work, Refusal> {
    let generation = params.text("Generation");
    Ok(look(move |_| {
        let mut families: Vec<&InstanceType> = instance_types().collect();
        families.dedup_by(|one, other| one.family == other.family);
        families.sort_by(|one, other| one.family.cmp(&other.family));
        families.dedup_by(|one, other| one.family == other.family);
        let shown = families.into_iter().filter_map(|one| {
            let its = format!("ecs-{}", self::generation(&one.family));
            let kept = generation.as_ref().is_none_or(|wish| *wish == its);
            kept.then(|| json!({"InstanceTypeFamilyId": one.family, "Generation": its}))
        });
        let mut reply = Reply::new();
        list(&mut reply, "InstanceTypeFamilies", "InstanceTypeFamily", shown.collect());
        Ok(reply)
    }))
}

/// A family's generation: the number in its name, 1 where it has none.
fn generation(family: &str) -> u32 {
    let digits = family.chars().find(char::is_ascii_digit);
    digits.and_then(|digit| digit.to_digit(10)).unwrap_or(1)
}
