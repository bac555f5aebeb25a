//! The session against a model of a back end, in one thread, with seeded faults.
//!
//! The model checks the order of what it is told and keeps what it was told; the world around it kills it between any
//! two messages and keeps the rings' used indices, as the guest's memory would. After any number of crashes the
//! model must be set up exactly as the driver asked for, and no ring may have lost or repeated a buffer.

mod card;
mod model;
mod world;

use super::*;
use model::Offer;
use world::World;

/// Every seed is one schedule of thousands of events.
const SCHEDULES: u64 = 1000;

#[test]
fn any_schedule_of_crashes_ends_as_the_driver_asked_for() {
    for seed in 0..SCHEDULES {
        let mut world = World::new(seed, Offer::of_seed(seed));
        for _ in 0..400 {
            world.random_event();
        }
        world.come_to_rest();
    }
}

/// The same, with our own back end at the other side.
#[test]
fn our_two_sides_agree_after_any_schedule_of_crashes() {
    for seed in 0..SCHEDULES {
        let mut world = World::among(seed, Offer::full(), true);
        for _ in 0..400 {
            world.random_event();
        }
        world.come_to_rest();
    }
    let quiet = World::start_up_among(&Offer::full(), &[], true);
    for first in 0..=quiet.delivered() {
        for second in 0..=quiet.delivered() {
            World::start_up_among(&Offer::full(), &[first, second], true);
        }
    }
}

/// The connection is lost after every single message in either direction, twice in a row.
#[test]
fn a_loss_at_every_message_is_survived() {
    for offer in Offer::all() {
        let quiet = World::start_up(&offer, &[]);
        for first in 0..=quiet.delivered() {
            World::start_up(&offer, &[first]);
            for second in 0..=quiet.delivered() {
                World::start_up(&offer, &[first, second]);
            }
        }
    }
}

/// Stopping, resuming and resetting, with a loss at every message.
#[test]
fn a_loss_while_stopping_answers_the_order_once() {
    for offer in Offer::all() {
        for resumable in [false, true] {
            let quiet = World::stop_and_go(&offer, resumable, None);
            for loss in 0..=quiet.delivered() {
                World::stop_and_go(&offer, resumable, Some(loss));
            }
        }
    }
}

#[test]
fn a_back_end_that_offers_less_is_refused_until_the_right_one_returns() {
    let offer = Offer::full();
    let mut world = World::start_up(&offer, &[]);
    world.offer.features &= !(1 << 9);
    world.kill();
    for _ in 0..50 {
        world.ordinary_event();
    }
    assert_eq!(world.last_down(), Some(&Down::Features { missing: 1 << 9 }));
    assert!(!world.session.is_running());
    world.offer = offer;
    world.come_to_rest();
    assert!(world.session.is_running());
}

#[test]
fn without_a_record_an_unordered_device_is_not_guessed_at() {
    let mut world = World::start_up(
        &Offer { protocol: Offer::full().protocol & !(1 << 12), ..Offer::full() },
        &[],
    );
    world.kill();
    for _ in 0..50 {
        world.ordinary_event();
    }
    assert_eq!(world.last_down(), Some(&Down::NoRecord));
    world.deactivate(false);
    world.activate();
    world.come_to_rest();
    assert!(world.session.is_running());
}

#[test]
fn a_silent_back_end_is_left_and_tried_again() {
    let mut world = World::new(1, Offer::full());
    world.memory();
    world.activate();
    world.connect();
    world.deadline(Timer::Link);
    assert_eq!(world.last_down(), Some(&Down::Late("GET_FEATURES")));
    world.come_to_rest();
    assert!(world.session.is_running());
}

#[test]
fn a_changed_configuration_space_is_read_again() {
    let mut world = World::start_up(&Offer::full(), &[]);
    world.offer.config = vec![9; 8];
    world.config_change();
    world.come_to_rest();
    assert_eq!(world.session.probe().unwrap().config, vec![9; 8]);
}

#[test]
fn the_state_of_a_steady_session_goes_on_in_another_process() {
    for seed in 0..60 {
        let mut world = World::new(seed, Offer::of_seed(seed));
        for _ in 0..150 {
            world.random_event();
            if seed % 3 == 0 {
                world.hand_over();
            }
        }
        world.come_to_rest();
        world.hand_over();
        world.come_to_rest();
    }
}
