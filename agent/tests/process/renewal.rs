//! The agent's certificate is renewed while it serves, and says what to do when it was not.

use crate::cloud::Cloud;
use crate::rig::{Rig, wait_for};
use std::time::Duration;

#[test]
fn a_certificate_is_renewed_and_used_without_a_restart() {
    let cloud = Cloud::start();
    cloud.sign_for(Duration::from_secs(9));
    let Some(mut rig) = Rig::of(cloud) else { return };
    let identity = || std::fs::read_to_string(rig.path("state/identity.json")).unwrap();
    let joined = identity();
    rig.start(None);
    wait_for("two certificates after the first", || (rig.cloud.certificates() > 2).then_some(()));
    let kept = std::fs::read_to_string(rig.path("state/identity.json")).unwrap();
    assert_ne!(kept, joined);
    // What was kept is what the next agent shows, and it is good.
    rig.kill();
    rig.cloud.forget_report();
    rig.start(None);
    rig.cloud.wait("a report", |_| Some(()));

    // The cloud stays away for longer than the certificate lives.
    rig.cloud.go_away();
    wait_for("the end of the certificate, told", || {
        rig.log().contains("join again by `bixi-agent join TOKEN`").then_some(())
    });
    assert!(!rig.has_died());
}
