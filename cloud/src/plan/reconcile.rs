//! The reconcilers: from nothing but the view, what is to be changed now. They can be run again at any time.
//!
//! | reconciler | what it brings together |
//! |---|---|
//! | launch | a creation that is larger than a transaction goes on; nothing else is planned before it is made |
//! | tasks | every task that has not ended takes its next step |
//! | settle | an instance that nobody works on gets the status that was seen; a deleted one goes |
//! | expire | records that are kept for a while go when it is over |
//!
//! Invariant: with nothing to do the plan is empty, and a plan carried out leads to a view whose plan is smaller or
//! waits for a report or the clock.

use super::task::{self, Advance, Afterwards};
use super::{Context, launch};
use crate::model::{
    ClientToken, Disk, Draft, Eni, Event, Instance, JoinTicket, Link, Power, Server, Severity,
    Status, Task, VSwitch, View,
};

const HOUR: u64 = 3_600_000;
/// How long the answer to a ClientToken is kept, in milliseconds.
const TOKEN_LIFE: u64 = 24 * HOUR;
/// How long a task that ended is kept.
const TASK_LIFE: u64 = 7 * 24 * HOUR;
/// How long an event is kept.
const EVENT_LIFE: u64 = 30 * 24 * HOUR;
/// The most events that are kept.
const EVENTS: usize = 50_000;
/// The most records that one transaction forgets.
const FORGET: usize = 60;

/// What is to be changed now; each draft is a transaction of its own.
pub fn plan(view: &View, context: &mut Context<'_>) -> Vec<Draft> {
    if let Some(draft) = launch::carry_on(view) {
        return vec![draft];
    }
    let mut drafts = tasks(view, context);
    drafts.extend(settle(view, context));
    drafts.extend(expire(view, context.now));
    drafts
}

fn tasks(view: &View, context: &mut Context<'_>) -> Vec<Draft> {
    let active = view.active.iter().filter_map(|id| view.tasks.get(id));
    let mut drafts = Vec::new();
    for task in active {
        let instance = view.instances.get(&task.instance);
        let server_exists =
            instance.is_some_and(|i| view.servers.get(&i.placement.server).is_some());
        if let Some(advance) =
            task::step(task, instance.map(AsRef::as_ref), server_exists, context.now)
        {
            drafts.push(carry_out(view, &advance, context));
        }
    }
    drafts
}

fn carry_out(view: &View, advance: &Advance, context: &mut Context<'_>) -> Draft {
    let mut draft = Draft::default();
    let task = &advance.task;
    draft.put(view, task);
    match &advance.instance {
        Afterwards::Put(instance) => draft.put(view, instance.as_ref()),
        Afterwards::Remove => remove(view, &task.instance, &mut draft),
        Afterwards::Missing => draft.expect::<Instance>(view, &task.instance),
    }
    if let Some((kind, severity, message)) = &advance.told {
        let tenant = Some(task.tenant.as_str());
        let mut event = context.event(tenant, &task.instance, kind, *severity, message.clone());
        event.task = Some(task.id.clone());
        draft.create(&event);
    }
    draft
}

/// Removes an instance and what goes with it; what stays is free afterwards.
fn remove(view: &View, id: &str, draft: &mut Draft) {
    for disk in view.disks_of(id) {
        if disk.delete_with_instance {
            draft.delete::<Disk>(view, &disk.id);
        } else {
            let mut disk = disk.as_ref().clone();
            disk.instance = None;
            disk.generation += 1;
            draft.put(view, &disk);
        }
    }
    for eni in view.enis_of(id) {
        if eni.primary {
            draft.delete::<Eni>(view, &eni.id);
        } else {
            let mut eni = eni.as_ref().clone();
            eni.instance = None;
            eni.generation += 1;
            draft.put(view, &eni);
        }
        if let Some(vswitch) = view.vswitches.get(&eni.vswitch) {
            let mut vswitch: VSwitch = vswitch.as_ref().clone();
            vswitch.generation += 1;
            draft.put(view, &vswitch);
        }
    }
    draft.delete::<Instance>(view, id);
}

fn settle(view: &View, context: &mut Context<'_>) -> Vec<Draft> {
    let idle = view.instances.iter().filter(|instance| instance.task.is_none());
    let mut drafts = Vec::new();
    for instance in idle {
        let Some(seen) = task::current(instance) else { continue };
        let mut draft = Draft::default();
        if instance.desired.power == Power::Deleted {
            if seen.state == "deleted" {
                remove(view, &instance.id, &mut draft);
                let tenant = Some(instance.tenant.as_str());
                let message = "It was deleted.".to_owned();
                draft.create(&context.event(
                    tenant,
                    &instance.id,
                    "InstanceDeleted",
                    Severity::Info,
                    message,
                ));
                drafts.push(draft);
            }
            continue;
        }
        let wanted = instance.desired.power == Power::Running;
        let this_boot = seen.boot >= instance.desired.boot;
        let status = if task::is_down(seen) && (this_boot || !wanted) {
            Status::Stopped
        } else if seen.state == "running" && wanted && this_boot {
            Status::Running
        } else {
            continue;
        };
        if status == instance.status || !instance.status.can_become(status) {
            continue;
        }
        let mut settled: Instance = instance.as_ref().clone();
        settled.status = status;
        if status == Status::Stopped {
            settled.desired.power = Power::Stopped;
        }
        draft.put(view, &settled);
        let (kind, severity, message) = tell(instance, status, seen.ended.as_deref());
        let tenant = Some(instance.tenant.as_str());
        draft.create(&context.event(tenant, &instance.id, kind, severity, message));
        drafts.push(draft);
    }
    drafts
}

fn tell(
    before: &Instance,
    status: Status,
    ended: Option<&str>,
) -> (&'static str, Severity, String) {
    match (before.desired.power, status) {
        (_, Status::Running) => ("InstanceStarted", Severity::Info, "It runs.".to_owned()),
        (Power::Running, _) => {
            let how = ended.unwrap_or("how is not known");
            ("InstanceEnded", Severity::Warning, format!("It ended by itself: {how}."))
        }
        _ => ("InstanceStopped", Severity::Info, "It was stopped.".to_owned()),
    }
}

fn expire(view: &View, now: u64) -> Option<Draft> {
    let mut draft = Draft::default();
    let over = |created: u64, life: u64| now >= created.saturating_add(life);
    let tickets = view.tickets.iter().filter(|ticket| now >= ticket.expires);
    for ticket in tickets.take(FORGET) {
        draft.delete::<JoinTicket>(view, &ticket.secret_sha256);
    }
    let tokens = view.client_tokens.iter().filter(|token| over(token.created, TOKEN_LIFE));
    for token in tokens.take(FORGET) {
        let key = ClientToken::key(&token.tenant, &token.action, &token.token);
        draft.delete::<ClientToken>(view, &key);
    }
    let tasks = view.tasks.iter().filter(|t| t.step.is_final() && over(t.updated, TASK_LIFE));
    for task in tasks.take(FORGET) {
        draft.delete::<Task>(view, &task.id);
    }
    // Events' ids are in the order of time.
    let surplus = view.events.len().saturating_sub(EVENTS);
    let old = view.events.iter().enumerate();
    let old = old.take_while(|(at, event)| *at < surplus || over(event.at, EVENT_LIFE));
    for (_, event) in old.take(FORGET) {
        draft.delete::<Event>(view, &event.id);
    }
    (!draft.is_empty()).then(|| draft.first(FORGET))
}

/// Whether the server's record may go: nothing is placed there.
pub fn is_free(view: &View, server: &Server) -> bool {
    view.linked::<Instance>(Link::InstanceAt, &server.id).next().is_none()
        && view.linked::<Disk>(Link::DiskAt, &server.id).next().is_none()
}
