//! `DescribeTasks`, `DescribeTaskAttribute` and `CancelTask`: every long operation, in ECS's words.

use super::instances::second;
use super::{list, look};
use crate::ecs::dispatch::{Caller, Done, Reply, Work};
use crate::ecs::paging::Page;
use crate::ecs::refusal::Refusal;
use crate::ecs::wire::params::Params;
use crate::ecs::wire::timestamp;
use crate::model::{Step, Task, TaskKind};
use crate::plan;
use serde_json::{Value, json};
use std::sync::Arc;

pub fn describe(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let page = Page::read(params)?;
    let ids = params.json_texts("TaskIds")?;
    let resources = params.texts("ResourceIds")?;
    let (action, status) = (params.text("TaskAction"), params.text("TaskStatus"));
    let (from, to) = (time(params, "StartTime")?, time(params, "EndTime")?);
    let caller = caller.clone();
    Ok(look(move |view| {
        let kept = view.tasks.iter().filter(|task| {
            let created = task.created / 1000;
            task.tenant == caller.tenant
                && ids.as_ref().is_none_or(|ids| ids.contains(&task.id))
                && (resources.is_empty() || resources.contains(&task.instance))
                && action.as_ref().is_none_or(|action| action == self::action(task))
                && status
                    .as_ref()
                    .is_none_or(|wish| wish.split(',').any(|s| s == self::status(task)))
                && from.is_none_or(|from| created >= from)
                && to.is_none_or(|to| created <= to)
        });
        let mut reply = Reply::new();
        reply.insert("RegionId".into(), caller.place.region.as_str().into());
        let place = |task: &Arc<Task>| (task.created, task.id.clone());
        let show = |task: &Arc<Task>| {
            let mut shown = common(task);
            shown["ResourceId"] = task.instance.as_str().into();
            shown
        };
        let shown = page.cut(kept.cloned().collect(), place, &mut reply, show);
        list(&mut reply, "TaskSet", "Task", shown);
        Ok(reply)
    }))
}

fn time(params: &mut Params, name: &str) -> Result<Option<u64>, Refusal> {
    let Some(text) = params.text(name) else { return Ok(None) };
    let seconds = timestamp::parse(&text).and_then(|seconds| u64::try_from(seconds).ok());
    let why = "it must be written as 2026-01-31T12:00:00Z";
    seconds.map(Some).ok_or_else(|| Refusal::invalid(name, why))
}

pub fn describe_attribute(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let (id, caller) = (params.needed("TaskId")?, caller.clone());
    Ok(Work::Look(Box::new(move |world| {
        let view = world.view;
        let task = view.tasks.get(&id).filter(|task| task.tenant == caller.tenant);
        let task = task.ok_or(plan::Refusal::NotFound { what: "task", id })?;
        let mut shown = common(task);
        let (done, failed) = (task.step == Step::Done, task.step.is_final());
        shown["RegionId"] = caller.place.region.into();
        shown["TotalCount"] = 1.into();
        shown["SuccessCount"] = u32::from(done).into();
        shown["FailedCount"] = u32::from(failed && !done).into();
        let percent = world.live.map_or(0, |live| live.percent(view, task));
        shown["TaskProcess"] = format!("{percent}%").into();
        shown["OperationProgressSet"] = json!({"OperationProgress": [progress(task)]});
        match shown {
            Value::Object(reply) => Ok(reply),
            _ => Err(Refusal::internal()),
        }
    })))
}

fn progress(task: &Task) -> Value {
    let item = json!({"Name": "InstanceId", "Value": task.instance});
    let mut progress = json!({
        "OperationStatus": status(task),
        "RelatedItemSet": {"RelatedItem": [item]},
    });
    if let Some(failure) = &task.failure {
        progress["ErrorCode"] = failure.code.as_str().into();
        progress["ErrorMsg"] = failure.message.as_str().into();
    }
    progress
}

fn common(task: &Task) -> Value {
    let can_cancel = match task.kind {
        TaskKind::Run | TaskKind::Start => !task.step.is_final(),
        _ => task.step == Step::Accepted,
    };
    let finished = if task.step.is_final() { second(task.updated) } else { String::new() };
    json!({
        "TaskId": task.id,
        "TaskAction": action(task),
        "TaskStatus": status(task),
        "SupportCancel": can_cancel.to_string(),
        "CreationTime": second(task.created),
        "FinishedTime": finished,
    })
}

fn action(task: &Task) -> &'static str {
    match task.kind {
        TaskKind::Run => "RunInstance",
        TaskKind::Start => "StartInstance",
        TaskKind::Stop => "StopInstance",
        TaskKind::Reboot => "RebootInstance",
        TaskKind::Delete => "DeleteInstance",
    }
}

fn status(task: &Task) -> &'static str {
    match task.step {
        Step::Accepted => "Pending",
        Step::Waiting => "Processing",
        Step::Undoing => "Processing",
        Step::Done => "Finished",
        Step::Failed => "Failed",
        Step::Cancelled => "Cancelled",
    }
}

pub fn cancel(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let (id, tenant) = (params.needed("TaskId")?, caller.tenant.clone());
    let plan =
        Box::new(move |world: crate::ecs::dispatch::World<'_>, _: &mut plan::Context<'_>| {
            let draft = plan::power::cancel(world.view, Some(&tenant), &id)?;
            Ok((draft, Done::default()))
        });
    Ok(Work::Change { plan, again: |_| Reply::new() })
}
