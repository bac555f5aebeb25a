//! Records in the words of the operator's interface.

use crate::model::{
    AccessKey, Disturbance, Event, Image, ImageState, Instance, Link, Power, Quota, Server,
    Severity, Step, Task, TaskKind, Tenant, View,
};
use crate::plan::create::{Usage, candidates, usage};
use crate::service::Live;
use bixi_api::agent::{Moment, ObservedInstance};
use bixi_api::operator::{
    AccessKeyDescription, EventDescription, ImageDescription, ImageFileDescription,
    InstanceDescription, LedgerDescription, QuotaDescription, ServerDescription, TaskDescription,
    TenantDescription,
};

pub(super) fn server(view: &View, live: &Live, server: &Server) -> ServerDescription {
    let alive = live.alive();
    let all = candidates(view, &alive, "");
    let candidate = all.into_iter().find(|candidate| candidate.server == server.id);
    let heard = live.heard(&server.id);
    let report = heard.map(|heard| &heard.report);
    let here = view.linked::<Instance>(Link::InstanceAt, &server.id);
    ServerDescription {
        id: server.id.clone(),
        name: server.name.clone(),
        joined: server.joined,
        schedulable: server.schedulable,
        alive: alive.contains(&server.id),
        heard: heard.map(|heard| u64::try_from(heard.at.elapsed().as_millis()).unwrap_or(u64::MAX)),
        release: server.release.clone(),
        instances: here.count(),
        used_vcpus: candidate.as_ref().map_or(0, |candidate| candidate.used_vcpus),
        vcpus: candidate.as_ref().map_or(0, |candidate| candidate.vcpus),
        used_memory_mib: candidate.as_ref().map_or(0, |candidate| candidate.used_memory_mib),
        memory_mib: candidate.as_ref().map_or(0, |candidate| candidate.memory_mib),
        inventory: report.map(|report| report.inventory.clone()),
        cards: report.map(|report| report.cards.clone()).unwrap_or_default(),
        refused: report.and_then(|report| report.refused.as_ref()).map(ToString::to_string),
    }
}

pub(super) fn tenant(view: &View, tenant: &Tenant) -> TenantDescription {
    let quota = &tenant.quota;
    let Usage { instances, vcpus, memory_mib, disks, disk_gib } = usage(view, &tenant.id);
    TenantDescription {
        id: tenant.id.clone(),
        name: tenant.name.clone(),
        created: tenant.created,
        quota: QuotaDescription {
            instances: quota.instances,
            vcpus: quota.vcpus,
            memory_mib: quota.memory_mib,
            disks: quota.disks,
            disk_gib: quota.disk_gib,
        },
        used: QuotaDescription { instances, vcpus, memory_mib, disks, disk_gib },
        default_vpc: tenant.default_vpc.clone(),
        default_vswitch: tenant.default_vswitch.clone(),
        default_security_group: tenant.default_group.clone(),
    }
}

pub(super) fn quota(quota: &QuotaDescription) -> Quota {
    Quota {
        instances: quota.instances,
        vcpus: quota.vcpus,
        memory_mib: quota.memory_mib,
        disks: quota.disks,
        disk_gib: quota.disk_gib,
    }
}

pub(super) fn key(key: &AccessKey, secret: bool) -> AccessKeyDescription {
    AccessKeyDescription {
        id: key.id.clone(),
        secret: secret.then(|| key.secret.clone()),
        tenant: key.tenant.clone(),
        created: key.created,
    }
}

pub(super) fn image(image: &Image) -> ImageDescription {
    let files = [("disk", &image.disk), ("kernel", &image.kernel), ("initrd", &image.initrd)];
    let files = files.into_iter().filter_map(|(part, file)| {
        let file = file.as_ref()?;
        let (size, sha256) = (file.size, file.sha256.clone());
        Some(ImageFileDescription { part: part.to_owned(), size, sha256 })
    });
    ImageDescription {
        id: image.id.clone(),
        name: image.name.clone(),
        description: image.description.clone(),
        tenant: image.tenant.clone(),
        architecture: image.architecture.clone(),
        os_name: image.os_name.clone(),
        cmdline: image.cmdline.clone(),
        created: image.created,
        available: image.state == ImageState::Available,
        files: files.collect(),
    }
}

pub(super) fn instance(view: &View, live: &Live, instance: &Instance) -> InstanceDescription {
    let observed = instance.observed.as_ref();
    let seen = live.instance(&instance.placement.server, &instance.id);
    InstanceDescription {
        id: instance.id.clone(),
        tenant: instance.tenant.clone(),
        name: instance.name.clone(),
        instance_type: instance.type_id.clone(),
        image: instance.image.clone(),
        status: instance.status.name().to_owned(),
        server: instance.placement.server.clone(),
        epoch: instance.placement.epoch,
        boot: instance.desired.boot,
        desired: match instance.desired.power {
            Power::Running => "running",
            Power::Stopped => "stopped",
            Power::Deleted => "deleted",
        }
        .to_owned(),
        observed: observed.map(|observed| observed.state.clone()),
        error: observed.and_then(|o| o.error.as_ref()).map(|error| error.message.clone()),
        ended: observed.and_then(|observed| observed.ended.clone()),
        task: instance.task.clone(),
        vcpus: instance.limits.vcpus,
        memory_mib: instance.limits.memory_mib,
        addresses: view.enis_of(&instance.id).iter().map(|eni| eni.ipv4.to_string()).collect(),
        disks: view.disks_of(&instance.id).iter().map(|disk| disk.id.clone()).collect(),
        created: instance.created,
        started: instance.started,
        phases: seen.map(|seen| seen.phases.clone()).unwrap_or_default(),
        moments: moments(instance, seen),
    }
}

/// When the steps of the last start were seen; the first start was asked for when the instance was.
fn moments(instance: &Instance, seen: Option<&ObservedInstance>) -> Vec<Moment> {
    let requested = Moment { what: "requested".to_owned(), at: instance.created };
    let first = instance.desired.boot <= 1;
    let seen = seen.into_iter().flat_map(|seen| seen.moments.iter().cloned());
    first.then_some(requested).into_iter().chain(seen).collect()
}

pub(super) fn task(view: &View, live: &Live, task: &Task) -> TaskDescription {
    let kind = match task.kind {
        TaskKind::Run => "run",
        TaskKind::Start => "start",
        TaskKind::Stop => "stop",
        TaskKind::Reboot => "reboot",
        TaskKind::Delete => "delete",
    };
    let step = match task.step {
        Step::Accepted => "accepted",
        Step::Waiting => "waiting",
        Step::Undoing => "undoing",
        Step::Done => "done",
        Step::Failed => "failed",
        Step::Cancelled => "cancelled",
    };
    TaskDescription {
        id: task.id.clone(),
        tenant: task.tenant.clone(),
        instance: task.instance.clone(),
        kind: kind.to_owned(),
        step: step.to_owned(),
        progress: live.percent(view, task),
        created: task.created,
        updated: task.updated,
        deadline: task.deadline,
        failure: task.failure.as_ref().map(|failure| failure.message.clone()),
    }
}

pub(super) fn event(event: &Event) -> EventDescription {
    EventDescription {
        id: event.id.clone(),
        at: event.at,
        tenant: event.tenant.clone(),
        subject: event.subject.clone(),
        kind: event.kind.clone(),
        message: event.message.clone(),
        severity: match event.severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
        .to_owned(),
        task: event.task.clone(),
    }
}

pub(super) fn disturbance(entry: &Disturbance) -> LedgerDescription {
    LedgerDescription {
        server: entry.server.clone(),
        sequence: entry.sequence,
        at: entry.at,
        cause: entry.cause.clone(),
        milliseconds: entry.milliseconds,
    }
}
