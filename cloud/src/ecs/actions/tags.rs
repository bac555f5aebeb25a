//! `ListTagResources`: the tags of instances; other resources have none.

use super::instances::instances;
use super::{list, look, tag_wishes};
use crate::ecs::dispatch::{Caller, Reply, Work};
use crate::ecs::paging::Page;
use crate::ecs::refusal::Refusal;
use crate::ecs::wire::params::Params;
use crate::model::{Instance, Tag};
use serde_json::json;
use std::sync::Arc;

/// What ECS puts tags on.
const KINDS: [&str; 8] =
    ["instance", "disk", "snapshot", "image", "securitygroup", "eni", "ddh", "keypair"];
/// Tags in one answer, as at ECS.
const MOST: u64 = 50;

pub fn list_resources(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let page = Page::read_token(params, MOST)?;
    let kind = params.one_of("ResourceType", &KINDS)?;
    let kind = kind.ok_or_else(|| Refusal::missing("ResourceType"))?;
    let (ids, wishes) = (params.texts("ResourceId")?, tag_wishes(params)?);
    let tenant = caller.tenant.clone();
    Ok(look(move |view| {
        let tagged = instances(view, &tenant).filter(|one| {
            kind == "instance"
                && (ids.is_empty() || ids.contains(&one.id))
                && super::has_tags(&one.tags, &wishes)
        });
        let pairs = tagged.flat_map(|one| {
            let tags = one.tags.clone();
            tags.into_iter().map(move |tag| (Arc::clone(&one), tag))
        });
        let place =
            |(one, tag): &(Arc<Instance>, Tag)| (one.created, format!("{} {}", one.id, tag.key));
        let show = |(one, tag): &(Arc<Instance>, Tag)| {
            json!({
                "ResourceId": one.id,
                "ResourceType": "instance",
                "TagKey": tag.key,
                "TagValue": tag.value,
            })
        };
        let mut reply = Reply::new();
        let shown = page.cut(pairs.collect(), place, &mut reply, show);
        list(&mut reply, "TagResources", "TagResource", shown);
        Ok(reply)
    }))
}
