//! A cloud on a real store that is killed after every single commit, and comes back.

use super::*;

/// A cloud on a real store that can be killed after any commit: `None` is that death.
struct Mortal {
    store: crate::store::EmbeddedStore,
    view: View,
    left: u64,
    commits: u64,
}

impl Mortal {
    async fn open(path: &std::path::Path, left: u64) -> Self {
        let store = crate::store::EmbeddedStore::open(path).unwrap();
        let page = store.range(b"", None, usize::MAX).await.unwrap();
        let mut view = View { revision: page.revision, ..View::default() };
        page.entries.iter().for_each(|entry| view.load(entry).unwrap());
        Self { store, view, left, commits: 0 }
    }

    async fn commit(&mut self, draft: Draft) -> Option<()> {
        let txn = draft.into_txn();
        let outcome = self.store.txn(txn.clone()).await.unwrap();
        let crate::store::Outcome::Committed(revision) = outcome else { panic!("{outcome:?}") };
        self.view.revision = revision;
        for op in txn.ops {
            self.view.apply(&change(op, revision)).unwrap();
        }
        self.commits += 1;
        self.left -= 1;
        (self.left > 0).then_some(())
    }

    /// Brings about whatever is wanted, with the agent, until nothing is to be done.
    async fn rest(
        &mut self,
        agent: &mut SimulatedAgent,
        now: &mut u64,
        random: &mut Seeded,
    ) -> Option<()> {
        for _ in 0..60 {
            let before = self.commits;
            agent.take(desired::desired(&self.view, &agent.server, "r", Vec::new()));
            agent.turn();
            *now += 1000;
            let mut context = Context { now: *now, ids: random };
            let mut drafts =
                observe::observe(&self.view, &agent.server, &agent.report(), &mut context);
            for draft in drafts.drain(..) {
                self.commit(draft).await?;
            }
            // One at a time: a plan is made anew after each step.
            while let Some(draft) =
                reconcile::plan(&self.view, &mut Context { now: *now, ids: random })
                    .into_iter()
                    .next()
            {
                self.commit(draft).await?;
            }
            if self.commits == before && self.view.active.is_empty() {
                return Some(());
            }
        }
        panic!("it does not come to rest")
    }

    /// What the tenant has not asked for yet. `asked` says what was acknowledged; it asks again for the rest.
    async fn ask(
        &mut self,
        tenant: &str,
        asked: &mut usize,
        now: u64,
        random: &mut Seeded,
    ) -> Option<bool> {
        let steps =
            [TaskKind::Run, TaskKind::Stop, TaskKind::Start, TaskKind::Reboot, TaskKind::Delete];
        let Some(kind) = steps.get(*asked) else { return Some(false) };
        let mut context = Context { now, ids: random };
        let draft = if *kind == TaskKind::Run {
            create(&self.view, &alive(&self.view), &wanted(tenant, 1), &mut context).unwrap().0
        } else {
            let id = self.view.instances.iter().next().unwrap().id.clone();
            power::request(&self.view, Some(tenant), &id, *kind, true, &mut context).unwrap().0
        };
        *asked += 1;
        self.commit(draft).await?;
        Some(true)
    }

    async fn live(
        &mut self,
        tenant: &str,
        agent: &mut SimulatedAgent,
        asked: &mut usize,
        now: &mut u64,
        random: &mut Seeded,
    ) -> Option<()> {
        loop {
            self.rest(agent, now, random).await?;
            if !self.ask(tenant, asked, *now, random).await? {
                return Some(());
            }
        }
    }
}

/// Writes the founded world once; it is copied for each death.
async fn found(path: &std::path::Path, world: &World, tenant: &Tenant) {
    let mut mortal = Mortal::open(path, u64::MAX).await;
    let mut draft = Draft::default();
    draft.create(tenant);
    world.view.vpcs.iter().for_each(|record| draft.create(record.as_ref()));
    world.view.vswitches.iter().for_each(|record| draft.create(record.as_ref()));
    world.view.groups.iter().for_each(|record| draft.create(record.as_ref()));
    world.view.images.iter().for_each(|record| draft.create(record.as_ref()));
    world.view.servers.iter().for_each(|record| draft.create(record.as_ref()));
    mortal.commit(draft).await.unwrap();
}

#[tokio::test]
async fn a_cloud_killed_after_every_single_step_ends_every_task_clean() {
    let folder = tempfile::tempdir().unwrap();
    let founded_at = folder.path().join("founded");
    let mut random = Seeded(7);
    let (world, tenant, agents) = founded(1, &mut random);
    let record = world.view.tenants.get(&tenant).unwrap().clone();
    found(&founded_at, &world, &record).await;
    let mut death = 1;
    let mut deaths = 0;
    loop {
        let path = folder.path().join("state");
        std::fs::copy(&founded_at, &path).unwrap();
        let (mut agent, mut asked, mut now) = (agents[0].clone(), 0, 2_000_000);
        let mut mortal = Mortal::open(&path, death).await;
        let survived = mortal.live(&tenant, &mut agent, &mut asked, &mut now, &mut random).await;
        drop(mortal);
        let mut mortal = Mortal::open(&path, u64::MAX).await;
        mortal.live(&tenant, &mut agent, &mut asked, &mut now, &mut random).await.unwrap();
        let view = &mortal.view;
        assert_eq!(view.tasks.len(), 5, "after {death} steps");
        assert!(view.tasks.iter().all(|task| task.step == Step::Done), "after {death} steps");
        assert!(view.instances.is_empty() && view.disks.is_empty() && view.enis.is_empty());
        assert!(agent.instances.values().all(|i| i.state == InstanceState::Deleted));
        assert_eq!(agent.starts.len(), 3);
        assert!(agent.starts.values().all(|starts| *starts == 1));
        let ends = view.events.iter().filter(|event| event.task.is_some()).count();
        assert_eq!(ends, 5, "after {death} steps");
        if survived.is_some() {
            break;
        }
        deaths += 1;
        death += 1;
    }
    assert!(deaths > 25, "{deaths} steps are fewer than there are");
}

/// The cloud is killed after every transaction of a creation that needs several, and comes back.
#[tokio::test]
async fn a_creation_in_steps_is_whole_wherever_the_cloud_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let founded_at = folder.path().join("founded");
    let mut random = Seeded(13);
    let (world, tenant, agents) = founded(2, &mut random);
    let record = world.view.tenants.get(&tenant).unwrap().as_ref().clone();
    let quota = Quota { instances: 60, ..Quota::default() };
    found(&founded_at, &world, &Tenant { quota, ..record }).await;
    let mut request = wanted(&tenant, 50);
    request.at_least = 10;
    request.token = Some(crate::plan::create::NewToken {
        action: "RunInstances".into(),
        token: "once".into(),
        fingerprint: "1".into(),
    });
    let plan = |view: &View, random: &mut Seeded| {
        let mut context = Context { now: 2_000_000, ids: random };
        create(view, &alive(view), &request, &mut context)
    };
    for death in 1.. {
        let path = folder.path().join("state");
        std::fs::copy(&founded_at, &path).unwrap();
        let mut mortal = Mortal::open(&path, death).await;
        let (draft, promised) = plan(&mortal.view, &mut random).unwrap();
        let mut survived = mortal.commit(draft).await;
        while let (Some(()), Some(draft)) = (survived, launch::carry_on(&mortal.view)) {
            survived = mortal.commit(draft).await;
        }
        drop(mortal);
        let mut mortal = Mortal::open(&path, u64::MAX).await;
        while let Some(draft) = launch::carry_on(&mortal.view) {
            mortal.commit(draft).await.unwrap();
        }
        // Whoever asks again gets what was promised, and it is there, once.
        let (draft, answer) = plan(&mortal.view, &mut random).unwrap();
        assert!(draft.is_empty() && answer == promised, "after {death} steps");
        let there: BTreeSet<String> = mortal.view.instances.iter().map(|i| i.id.clone()).collect();
        assert_eq!(there, promised.into_iter().collect(), "after {death} steps");
        assert_eq!((there.len(), mortal.view.tasks.len()), (50, 50));
        check(&mortal.view, &agents);
        if survived.is_some() {
            assert!(death > 3, "{death} steps are fewer than there are");
            return;
        }
    }
}
