//! Single requests and what becomes of them: promised whole, taken back, or refused with the reason.

use super::*;

/// A hundred instances with all that one may have, on a hundred servers, for a tenant with just that quota.
#[test]
fn a_hundred_instances_are_promised_in_one_transaction() {
    let mut random = Seeded(11);
    let (mut world, tenant, _) = founded(100, &mut random);
    let quota =
        Quota { instances: 100, vcpus: 100, memory_mib: 25_600, disks: 1700, disk_gib: 3300 };
    let record = world.view.tenants.get(&tenant).unwrap().as_ref().clone();
    let mut draft = Draft::default();
    draft.put(&world.view, &Tenant { quota, ..record });
    assert!(world.commit(draft));
    let mut request = wanted(&tenant, 100);
    request.user_data = "u".repeat(32 << 10);
    request.data_disks =
        vec![NewDisk { description: "d".repeat(256), ..request.data_disks[0].clone() }; 16];
    let tag = |n| Tag { key: format!("{n}{}", "k".repeat(100)), value: "v".repeat(128) };
    request.tags = (0..20).map(tag).collect();
    let mut context = Context { now: world.now, ids: &mut random };
    let made = create(&world.view, &alive(&world.view), &request, &mut context);
    let made = world.must(made);
    assert_eq!(made.len(), 100);
    assert_eq!(world.view.launches.len(), 1);
    assert!(world.view.instances.len() < 100);
    // Whatever else is to be done waits for it.
    let mut steps = 0;
    while !world.view.launches.is_empty() {
        let mut plan = reconcile::plan(&world.view, &mut context);
        assert_eq!(plan.len(), 1);
        assert!(world.commit(plan.remove(0)));
        steps += 1;
    }
    assert!((5..40).contains(&steps), "{steps}");
    let ids: BTreeSet<String> = made.into_iter().collect();
    assert_eq!(world.view.instances.iter().map(|i| i.id.clone()).collect::<BTreeSet<_>>(), ids);
    assert_eq!((world.view.disks.len(), world.view.tasks.len()), (1700, 100));
    let servers: BTreeSet<&str> =
        world.view.instances.iter().map(|i| i.placement.server.as_str()).collect();
    assert_eq!(servers.len(), 100);
    check(&world.view, &[]);
    let again = create(&world.view, &alive(&world.view), &wanted(&tenant, 1), &mut context);
    assert!(matches!(again, Err(Refusal::Quota { what: "instances", used: 100, .. })));
}

#[test]
fn a_start_that_is_cancelled_or_late_is_taken_back() {
    for cancel in [true, false] {
        let mut random = Seeded(3);
        let (mut world, tenant, mut agents) = founded(1, &mut random);
        let mut context = Context { now: world.now, ids: &mut random };
        let made = create(&world.view, &alive(&world.view), &wanted(&tenant, 1), &mut context);
        let id = world.must(made).remove(0);
        let task = world.view.instances.get(&id).unwrap().task.clone().unwrap();
        for draft in reconcile::plan(&world.view, &mut context) {
            assert!(world.commit(draft));
        }
        let state = desired::desired(&world.view, &agents[0].server, "r", Vec::new());
        agents[0].take(state);
        agents[0].turn();
        if cancel {
            let cancelled = power::cancel(&world.view, Some(&tenant), &task).unwrap();
            assert!(world.commit(cancelled));
        } else {
            world.now += task::patience(TaskKind::Run);
        }
        heal(&mut world, &mut agents, &mut random);
        check_rest(&world.view, &agents);
        let task = world.view.tasks.get(&task).unwrap();
        assert_eq!(task.step, if cancel { Step::Cancelled } else { Step::Failed });
        assert_eq!(world.view.instances.get(&id).unwrap().status, Status::Stopped);
        if !cancel {
            let failure = task.failure.as_ref().unwrap();
            assert!(failure.message.contains("deadline"), "{failure:?}");
        }
    }
}

#[test]
fn an_image_runs_on_servers_of_its_architecture_alone() {
    let mut random = Seeded(17);
    let (mut world, tenant, agents) = founded(1, &mut random);
    let arm =
        Image { id: format!("m-{}", "2".repeat(20)), architecture: "arm64".into(), ..image() };
    let mut draft = Draft::default();
    draft.create(&arm);
    assert!(world.commit(draft));
    let mut context = Context { now: world.now, ids: &mut random };
    let mut request = wanted(&tenant, 1);
    request.image = arm.id;
    let refused = create(&world.view, &alive(&world.view), &request, &mut context).unwrap_err();
    let refused = crate::ecs::refusal::Refusal::from(refused);
    assert_eq!((refused.status, &*refused.code), (403, "ImageNotSupportInstanceType"));
    // A type of the image's architecture, and no server that is.
    request.architecture = "arm64".to_owned();
    let refused = create(&world.view, &alive(&world.view), &request, &mut context).unwrap_err();
    assert!(refused.to_string().contains("has another architecture"), "{refused}");
    let mut report = agents[0].report();
    report.inventory.architecture = "arm64".to_owned();
    for draft in observe::observe(&world.view, &agents[0].server, &report, &mut context) {
        assert!(world.commit(draft));
    }
    assert!(create(&world.view, &alive(&world.view), &request, &mut context).is_ok());
}

#[test]
fn requests_are_refused_with_their_reason() {
    let mut random = Seeded(5);
    let (mut world, tenant, _) = founded(1, &mut random);
    let mut context = Context { now: world.now, ids: &mut random };
    let try_it = |world: &World, request: &NewInstances, context: &mut Context<'_>| {
        create(&world.view, &alive(&world.view), request, context).map(|(_, made)| made)
    };
    let mut request = wanted(&tenant, 1);
    request.image = "m-none".to_owned();
    assert!(matches!(
        try_it(&world, &request, &mut context),
        Err(Refusal::NotFound { what: "image", .. })
    ));
    let mut request = wanted(&tenant, 1);
    request.limits.memory_mib = 1 << 18;
    let refused = try_it(&world, &request, &mut context);
    assert!(
        matches!(&refused, Err(Refusal::NoStock(why)) if why.contains("MiB of memory left")),
        "{refused:?}"
    );
    let refused = try_it(&world, &wanted(&tenant, 21), &mut context);
    assert!(matches!(refused, Err(Refusal::Quota { what: "instances", limit: 20, .. })));
    let mut request = wanted(&tenant, 1);
    request.vswitch = Some("vsw-another".to_owned());
    assert!(matches!(try_it(&world, &request, &mut context), Err(Refusal::NotFound { .. })));

    let mut request = wanted(&tenant, 2);
    let token = crate::plan::create::NewToken {
        action: "RunInstances".into(),
        token: "a/ b".into(),
        fingerprint: "1".into(),
    };
    request.token = Some(token.clone());
    let made = create(&world.view, &alive(&world.view), &request, &mut context);
    let made = world.must(made);
    assert_eq!(made.len(), 2);
    // The same again is the same; the token for something else is refused.
    let again = create(&world.view, &alive(&world.view), &request, &mut context).unwrap();
    assert!(again.0.is_empty() && again.1 == made);
    request.token = Some(crate::plan::create::NewToken { fingerprint: "2".into(), ..token });
    assert_eq!(try_it(&world, &request, &mut context), Err(Refusal::TokenMismatch));

    let other = tenancy::new_tenant(&world.view, "two", Quota::default(), "z", &mut context);
    let other = world.must(other).id;
    let asked =
        power::request(&world.view, Some(&other), &made[0], TaskKind::Delete, true, &mut context);
    assert!(matches!(asked, Err(Refusal::NotFound { what: "instance", .. })));
    let asked =
        power::request(&world.view, Some(&tenant), &made[0], TaskKind::Start, true, &mut context);
    assert!(matches!(asked, Err(Refusal::Busy { .. })));
    // Both tenants have the same addresses and different segments.
    let vnis: BTreeSet<u32> = world.view.vswitches.iter().map(|vswitch| vswitch.vni).collect();
    assert_eq!(vnis.len(), 2);
    assert!(tenancy::remove_tenant(&world.view, &tenant).is_err());
    let draft = tenancy::remove_tenant(&world.view, &other).unwrap();
    assert!(world.commit(draft));
    assert_eq!((world.view.vpcs.len(), world.view.segments.len()), (1, 1));
}
