//! Start, stop, reboot and delete, of one instance and of several. Each writes a task; the reconcilers do the rest.
//!
//! Several instances are one transaction: all of them are asked, or none is. With `BatchOptimization=SuccessFirst` those
//! that can are asked, and the answer says which could not.

use crate::ecs::dispatch::{Caller, Done, Reply, Work, World};
use crate::ecs::refusal::Refusal;
use crate::ecs::wire::params::Params;
use crate::model::{Draft, Task, TaskKind};
use crate::plan::{self, Context, power};
use serde_json::{Value, json};

/// The most instances in one request: what one transaction holds.
const MANY: usize = 40;

/// What is asked of instances.
struct Order {
    tenant: String,
    kind: TaskKind,
    force: bool,
    ids: Vec<String>,
    /// Whether those that can are asked even if others cannot.
    success_first: bool,
}

pub fn start(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    params.one_of("InitLocalDisk", &["false", "False"])?;
    one(params, caller, TaskKind::Start, false)
}

pub fn start_many(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    many(params, caller, TaskKind::Start, false)
}

pub fn stop(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    params.boolean("ConfirmStop")?;
    params.one_of("Hibernate", &["false", "False"])?;
    params.one_of("StoppedMode", &["KeepCharging"])?;
    let force = params.boolean("ForceStop")?.unwrap_or(false);
    one(params, caller, TaskKind::Stop, force)
}

pub fn stop_many(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    params.one_of("StoppedMode", &["KeepCharging"])?;
    let force = params.boolean("ForceStop")?.unwrap_or(false);
    many(params, caller, TaskKind::Stop, force)
}

pub fn reboot(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let force = params.boolean("ForceStop")?.unwrap_or(false);
    one(params, caller, TaskKind::Reboot, force)
}

pub fn reboot_many(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let force = params.boolean("ForceReboot")?.unwrap_or(false);
    many(params, caller, TaskKind::Reboot, force)
}

pub fn delete(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let force = forced_deletion(params)?;
    one(params, caller, TaskKind::Delete, force)
}

pub fn delete_many(params: &mut Params, caller: &Caller) -> Result<Work, Refusal> {
    let force = forced_deletion(params)?;
    many(params, caller, TaskKind::Delete, force)
}

/// A running instance is deleted by force, and then it loses its power at once. Nothing is paid in advance here, so
/// that there is no subscription to end.
fn forced_deletion(params: &mut Params) -> Result<bool, Refusal> {
    params.boolean("TerminateSubscription")?;
    params.boolean("ForceStop")?;
    Ok(params.boolean("Force")?.unwrap_or(false))
}

fn one(params: &mut Params, caller: &Caller, kind: TaskKind, force: bool) -> Result<Work, Refusal> {
    let ids = vec![params.needed("InstanceId")?];
    let tenant = caller.tenant.clone();
    let order = Order { tenant, kind, force, ids, success_first: false };
    let plan = Box::new(move |world: World<'_>, context: &mut Context<'_>| {
        let (draft, _) = order.plan(world, context)?;
        Ok((draft, Done::default()))
    });
    Ok(Work::Change { plan, again: |_| Reply::new() })
}

fn many(
    params: &mut Params,
    caller: &Caller,
    kind: TaskKind,
    force: bool,
) -> Result<Work, Refusal> {
    let mut ids = params.texts("InstanceId")?;
    ids.sort();
    ids.dedup();
    if ids.is_empty() {
        return Err(Refusal::missing("InstanceId"));
    }
    if ids.len() > MANY {
        let why = format!("at most {MANY} instances are possible in one request");
        return Err(Refusal::invalid("InstanceId", why));
    }
    let how = params.one_of("BatchOptimization", &["AllTogether", "SuccessFirst"])?;
    let success_first = how.is_some_and(|how| how == "SuccessFirst");
    let order = Order { tenant: caller.tenant.clone(), kind, force, ids, success_first };
    let plan = Box::new(move |world: World<'_>, context: &mut Context<'_>| {
        let (draft, responses) = order.plan(world, context)?;
        let mut reply = Reply::new();
        super::list(&mut reply, "InstanceResponses", "InstanceResponse", responses);
        Ok((draft, Done { ids: Vec::new(), reply }))
    });
    Ok(Work::Change { plan, again: |_| Reply::new() })
}

impl Order {
    fn plan(
        &self,
        world: World<'_>,
        context: &mut Context<'_>,
    ) -> Result<(Draft, Vec<Value>), Refusal> {
        let (mut draft, mut responses) = (Draft::default(), Vec::new());
        for id in &self.ids {
            let tenant = Some(self.tenant.as_str());
            match power::request(world.view, tenant, id, self.kind, self.force, context) {
                Ok((change, task)) => {
                    draft.join(change);
                    responses.push(self.granted(world, &task));
                }
                Err(refusal) if self.success_first => responses.push(refused(id, refusal)),
                Err(refusal) => return Err(refusal.into()),
            }
        }
        Ok((draft, responses))
    }

    fn granted(&self, world: World<'_>, task: &Task) -> Value {
        let before = world.view.instances.get(&task.instance);
        let after = match self.kind {
            TaskKind::Run | TaskKind::Start | TaskKind::Reboot => "Starting",
            TaskKind::Stop | TaskKind::Delete => "Stopping",
        };
        json!({
            "InstanceId": task.instance,
            "Code": "200",
            "Message": "success",
            "PreviousStatus": before.map_or("", |one| one.status.name()),
            "CurrentStatus": after,
        })
    }
}

fn refused(id: &str, refusal: plan::Refusal) -> Value {
    let refusal = Refusal::from(refusal);
    json!({"InstanceId": id, "Code": refusal.code, "Message": refusal.message})
}
