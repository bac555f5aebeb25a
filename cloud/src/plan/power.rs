//! Requests about an instance that exists: start, stop, reboot, delete; and the cancelling of what they began.

use super::task::patience;
use super::{Context, Refusal};
use crate::model::{Draft, Instance, Power, Status, Step, Task, TaskKind, View};

/// The instance, if it is this tenant's. The operator, who is nobody's tenant, sees all.
///
/// # Errors
/// There is none, or it is another's: which of the two is not said.
pub fn instance<'v>(
    view: &'v View,
    tenant: Option<&str>,
    id: &str,
) -> Result<&'v Instance, Refusal> {
    let found = view.instances.get(id).filter(|i| tenant.is_none_or(|tenant| i.tenant == tenant));
    found
        .map(AsRef::as_ref)
        .ok_or_else(|| Refusal::NotFound { what: "instance", id: id.to_owned() })
}

/// A new task on an instance. `force` takes the guest's power at once, and lets a running instance be deleted.
///
/// # Errors
/// The instance's status does not allow it, it is busy or protected, or there is none.
pub fn request(
    view: &View,
    tenant: Option<&str>,
    id: &str,
    kind: TaskKind,
    force: bool,
    context: &mut Context<'_>,
) -> Result<(Draft, Task), Refusal> {
    let instance = instance(view, tenant, id)?;
    allow(instance, kind, force)?;
    let task = context.ids.id("task");
    let task = new_task(task, &instance.tenant, id, kind, force, context.now);
    let mut draft = Draft::default();
    draft.put(view, &Instance { task: Some(task.id.clone()), ..instance.clone() });
    draft.create(&task);
    Ok((draft, task))
}

/// Whether the instance's status allows a request, without making one.
///
/// # Errors
/// See [`request`].
pub fn allow(instance: &Instance, kind: TaskKind, force: bool) -> Result<(), Refusal> {
    if kind == TaskKind::Delete && instance.deletion_protection {
        return Err(Refusal::Protected(instance.id.clone()));
    }
    if let Some(task) = &instance.task {
        return Err(Refusal::Busy { id: instance.id.clone(), task: task.clone() });
    }
    if instance.desired.power == Power::Deleted && kind != TaskKind::Delete {
        let (id, status) = (instance.id.clone(), instance.status.name());
        let hint = "its server was asked to delete it already; ask for its deletion again";
        return Err(Refusal::Status { id, status, hint });
    }
    let hint = match (kind, instance.status) {
        (TaskKind::Start | TaskKind::Run, Status::Stopped | Status::Pending) => return Ok(()),
        (TaskKind::Stop, Status::Running | Status::Starting | Status::Stopping) => return Ok(()),
        (TaskKind::Reboot, Status::Running) => return Ok(()),
        (TaskKind::Delete, Status::Stopped | Status::Pending) => return Ok(()),
        (TaskKind::Delete, _) if force => return Ok(()),
        (TaskKind::Start | TaskKind::Run, _) => "only a stopped one can be started",
        (TaskKind::Stop | TaskKind::Reboot, _) => "only a running one can be stopped or rebooted",
        (TaskKind::Delete, _) => "stop it first, or delete it by force",
    };
    Err(Refusal::Status { id: instance.id.clone(), status: instance.status.name(), hint })
}

/// A task that was not begun yet.
pub fn new_task(
    id: String,
    tenant: &str,
    instance: &str,
    kind: TaskKind,
    force: bool,
    now: u64,
) -> Task {
    Task {
        id,
        tenant: tenant.to_owned(),
        instance: instance.to_owned(),
        kind,
        step: Step::Accepted,
        created: now,
        updated: now,
        deadline: now + patience(kind),
        cancel: false,
        force,
        failure: None,
    }
}

/// Wants a task to end. A start is taken back; what a stop or a deletion has asked for cannot be.
///
/// # Errors
/// There is no such task, it has ended, or it cannot be taken back any more.
pub fn cancel(view: &View, tenant: Option<&str>, id: &str) -> Result<Draft, Refusal> {
    let task = view.tasks.get(id).filter(|t| tenant.is_none_or(|tenant| t.tenant == tenant));
    let task = task.ok_or_else(|| Refusal::NotFound { what: "task", id: id.to_owned() })?;
    if task.step.is_final() {
        return Err(Refusal::InUse(format!("task {id} has ended already")));
    }
    let starts = matches!(task.kind, TaskKind::Run | TaskKind::Start);
    if !starts && task.step != Step::Accepted {
        return Err(Refusal::InUse(format!(
            "task {id} cannot be taken back: the server was asked already; wait for its end"
        )));
    }
    let mut draft = Draft::default();
    draft.put(view, &Task { cancel: true, ..task.as_ref().clone() });
    Ok(draft)
}
