//! The actions, a file per noun. Each reads its parameters and says what it would do; `find` is the whole list.
//!
//! An action that is not here is refused by `dispatch`, and so is a parameter that an action does not take.

mod create;
mod disks;
mod images;
mod instances;
mod lifecycle;
mod networks;
mod regions;
mod tags;
mod tasks;
mod types;

use super::dispatch::{Caller, Reply, Work};
use super::documented::Version;
use super::refusal::Refusal;
use super::wire::params::Params;
use crate::model::View;
use serde_json::Value;

/// Reads an action's parameters.
pub type Read = fn(&mut Params, &Caller) -> Result<Work, Refusal>;

/// The action of that name, if it is there.
pub fn find(version: Version, name: &str) -> Option<Read> {
    let read: Read = match (version, name) {
        (Version::Ecs, "DescribeRegions") => regions::describe_regions,
        (Version::Ecs, "DescribeZones") => regions::describe_zones,
        (Version::Ecs, "DescribeInstanceTypes") => types::describe_types,
        (Version::Ecs, "DescribeInstanceTypeFamilies") => types::describe_families,
        (Version::Ecs, "DescribeInstances") => instances::describe,
        (Version::Ecs, "DescribeInstanceStatus") => instances::describe_status,
        (Version::Ecs, "DescribeInstanceAttribute") => instances::describe_attribute,
        (Version::Ecs, "DescribeUserData") => instances::describe_user_data,
        (Version::Ecs, "DescribeImages") => images::describe,
        (Version::Ecs, "DescribeDisks") => disks::describe,
        (Version::Ecs, "DescribeSecurityGroups") => networks::describe_groups,
        (Version::Ecs, "DescribeNetworkInterfaces") => networks::describe_interfaces,
        (Version::Ecs | Version::Vpc, "DescribeVpcs") => networks::describe_vpcs,
        (Version::Ecs | Version::Vpc, "DescribeVSwitches") => networks::describe_vswitches,
        (Version::Ecs, "DescribeTasks") => tasks::describe,
        (Version::Ecs, "DescribeTaskAttribute") => tasks::describe_attribute,
        (Version::Ecs, "ListTagResources") => tags::list_resources,
        (Version::Ecs, "RunInstances") => create::run,
        (Version::Ecs, "CreateInstance") => create::create,
        (Version::Ecs, "StartInstance") => lifecycle::start,
        (Version::Ecs, "StartInstances") => lifecycle::start_many,
        (Version::Ecs, "StopInstance") => lifecycle::stop,
        (Version::Ecs, "StopInstances") => lifecycle::stop_many,
        (Version::Ecs, "RebootInstance") => lifecycle::reboot,
        (Version::Ecs, "RebootInstances") => lifecycle::reboot_many,
        (Version::Ecs, "DeleteInstance") => lifecycle::delete,
        (Version::Ecs, "DeleteInstances") => lifecycle::delete_many,
        (Version::Ecs, "CancelTask") => tasks::cancel,
        _ => return None,
    };
    Some(read)
}

/// Work that only looks.
fn look(look: impl FnOnce(&View) -> Result<Reply, Refusal> + Send + 'static) -> Work {
    Work::Look(Box::new(move |world| look(world.view)))
}

/// A reply with one list in it: `{outer: {inner: items}}`.
fn list(reply: &mut Reply, outer: &str, inner: &str, items: Vec<Value>) {
    let mut fields = Reply::new();
    fields.insert(inner.to_owned(), items.into());
    reply.insert(outer.to_owned(), fields.into());
}

/// Whether a text fits a pattern in which `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or("");
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(end)
}

/// One wanted tag: a key, and a value if only that will do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TagWish {
    key: String,
    value: Option<String>,
}

fn tag_wishes(params: &mut Params) -> Result<Vec<TagWish>, Refusal> {
    params.objects("Tag", |tag| Ok(TagWish { key: tag.needed("Key")?, value: tag.text("Value") }))
}

fn has_tags(tags: &[crate::model::Tag], wishes: &[TagWish]) -> bool {
    let fits = |wish: &TagWish, tag: &crate::model::Tag| {
        tag.key == wish.key && wish.value.as_ref().is_none_or(|value| *value == tag.value)
    };
    wishes.iter().all(|wish| tags.iter().any(|tag| fits(wish, tag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_stands_for_what_it_says() {
        for (pattern, text, does) in [
            ("web", "web", true),
            ("web", "web1", false),
            ("web*", "web1", true),
            ("*1", "web1", true),
            ("*e*1", "web1", true),
            ("w*b*b", "wb", false),
            ("*", "", true),
            ("a**b", "ab", true),
        ] {
            assert_eq!(fits(pattern, text), does, "{pattern} {text}");
        }
    }
}
