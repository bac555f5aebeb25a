//! Creations, however large: what was promised is written down whole, then made record by record.
//!
//! ```text
//!             fits one transaction
//!   create ────────────────────────────────────────► made
//!      │ does not: the rest is a launch      ▲ the last ones, and the launch goes
//!      └──────────────► launched ────────────┘
//!                        │    ▲
//!                        └────┘ as many as one transaction holds
//! ```
//!
//! Invariants: the first transaction has the tenant's, the vSwitch's and the servers' parts in it and decides: after it
//! all instances will be, before it none. A cloud that dies in between goes on with the launch it finds. No other plan is
//! made while there is a launch in the view, so that nobody counts, places or addresses without it.

use super::power::new_task;
use crate::model::{Disk, Draft, Eni, Instance, Launch, Member, Placement, TaskKind, View};
use crate::store::{TXN_BYTES, TXN_OPERATIONS};

/// Room in a transaction for the launch itself and for the answer to a ClientToken.
const OTHERS: usize = 8;

/// Moves as many of the launch's members into the draft as one transaction holds.
pub fn make(launch: &mut Launch, draft: &mut Draft) {
    let mut made = 0;
    for member in &launch.members {
        let mut one = Draft::default();
        write(launch, member, &mut one);
        let operations = draft.operations() + one.operations();
        // Half of the bytes, since what is left of the launch goes into the same transaction.
        if operations > TXN_OPERATIONS - OTHERS || draft.bytes() + one.bytes() > TXN_BYTES / 2 {
            break;
        }
        draft.join(one);
        made += 1;
    }
    launch.members.drain(..made);
}

/// The next step of a launch, if there is one.
pub fn carry_on(view: &View) -> Option<Draft> {
    let launch = view.launches.iter().next()?;
    let (mut rest, mut draft) = (launch.as_ref().clone(), Draft::default());
    make(&mut rest, &mut draft);
    if rest.members.is_empty() {
        draft.delete::<Launch>(view, &launch.id);
    } else {
        draft.put(view, &rest);
    }
    Some(draft)
}

fn write(launch: &Launch, member: &Member, draft: &mut Draft) {
    let (tenant, id) = (&launch.instance.tenant, &member.instance);
    draft.create(&Instance {
        id: id.clone(),
        name: member.name.clone(),
        host_name: member.host_name.clone(),
        placement: Placement { server: member.server.clone(), ..launch.instance.placement.clone() },
        task: member.task.clone(),
        ..launch.instance.clone()
    });
    draft.create(&Eni {
        id: member.eni.clone(),
        mac: member.mac.clone(),
        ipv4: member.ipv4,
        instance: Some(id.clone()),
        ..launch.eni.clone()
    });
    for (disk, own) in launch.disks.iter().zip(&member.disks) {
        let server = member.server.clone();
        draft.create(&Disk { id: own.clone(), instance: Some(id.clone()), server, ..disk.clone() });
    }
    if let Some(task) = &member.task {
        let task = task.clone();
        draft.create(&new_task(task, tenant, id, TaskKind::Run, false, launch.created));
    }
}
