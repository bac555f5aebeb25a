//! The transport as a driver sees it, in front of a device that writes down its orders.

use super::device::VirtioDevice;
use super::driver::Driver;
use super::features::{RING_EVENT_IDX, VERSION_1};
use super::fuzz::{Around, LONELY, Order, Recorder, virtio_accesses, virtio_state};
use super::registers::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, NO_VECTOR,
};
use super::state::{TRANSPORT, TransportState};
use super::transport::VirtioPci;
use crate::device::Device;
use crate::pci::{PciFunction, PciPath};
use bixi_api::state::{Declared, Movable, Payload};
use bixi_offload::frontend::Ring;
use proptest::prelude::*;
use std::ops::Deref;
use std::sync::Arc;

struct Guest {
    device: Arc<Recorder>,
    driver: Driver,
}

impl Deref for Guest {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.driver
    }
}

impl Guest {
    fn new() -> Self {
        Self::with(Recorder::new(true))
    }

    fn with(device: Arc<Recorder>) -> Self {
        let host = Arc::new(Around::default());
        let path = PciPath::behind(2, 1).unwrap();
        let (dyn_device, dyn_host) = (Arc::clone(&device) as _, Arc::clone(&host) as _);
        let function = VirtioPci::new("d0", path, dyn_device, dyn_host).unwrap();
        Self { device, driver: Driver { function, host } }
    }

    fn set_up_queue(&self, index: u16, size: u16, at: u64) {
        let (avail, used) = (at.wrapping_add(0x8000), at.wrapping_add(0xc000));
        let ring = Ring { index, size, desc: at, avail, used, base: 0, enabled: true };
        self.set_up(&ring);
    }

    fn drive(&self, features: u64, queues: &[u16]) {
        self.set_status(0);
        self.negotiate(features);
        let at = |index: u16| 0x10000 + u64::from(index) * 0x10000;
        queues.iter().for_each(|index| self.set_up_queue(*index, 64, at(*index)));
        self.ready();
    }

    fn config_write(&self, offset: u16, width: usize, value: u32) {
        self.function.config_write(offset, &value.to_le_bytes()[..width]);
    }

    fn config_read(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Offsets of the capabilities: MSI-X, then the vendor's by kind.
    fn capabilities(&self) -> Vec<(u8, u8, u16)> {
        let mut at = self.config_read(0x34) as u8;
        let mut found = Vec::new();
        while at != 0 {
            let [id, next, _, kind] = self.config_read(at.into()).to_le_bytes();
            found.push((id, kind, u16::from(at)));
            at = next;
        }
        found
    }
}

const WANTED: u64 = VERSION_1 | RING_EVENT_IDX;

/// A running guest has read these once: they are frozen with the board.
#[test]
fn the_layout_is_frozen() {
    let guest = Guest::new();
    assert_eq!(guest.config_read(0), 0x1042_1af4);
    assert_eq!(guest.config_read(8), 0x0180_0001);
    assert_eq!(guest.config_read(0x2c), 0x1100_1af4);
    let capabilities = guest.capabilities();
    let kinds: Vec<_> = capabilities.iter().map(|(id, kind, _)| (*id, *kind)).collect();
    assert_eq!(kinds, [(0x11, 0), (9, 1), (9, 2), (9, 3), (9, 4), (9, 5)]);
    let at = |n: usize| capabilities[n].2;
    let words = |n: usize| [4, 8, 12].map(|word| guest.config_read(at(n) + word));
    assert_eq!(guest.config_read(at(0)) >> 16, 3, "four vectors");
    assert_eq!(words(0)[..2], [0x3000, 0x3800]);
    assert_eq!(words(1), [0, 0, 0x40]);
    assert_eq!((words(2), guest.config_read(at(2) + 16)), ([0, 0x2000, 12], 4));
    assert_eq!((words(3), words(4)), ([0, 0x800, 4], [0, 0x1000, 8]));
    guest.config_write(0x10, 4, u32::MAX);
    assert_eq!(guest.config_read(0x10), 0xffff_c000);
}

#[test]
fn a_driver_that_follows_the_specification_gets_what_it_set_up() {
    let guest = Guest::new();
    assert_eq!(guest.read(0x12, 2), 3);
    guest.write(0x16, 2, 1);
    assert_eq!((guest.read(0x18, 2), guest.read(0x1e, 2)), (64, 1));
    guest.drive(WANTED, &[0, 2]);
    assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let orders = guest.device.orders();
    let [Order::Activate(activation)] = &orders[..] else { panic!("{orders:?}") };
    assert_eq!(activation.features, WANTED);
    let queues: Vec<_> = activation.queues.iter().map(|q| (q.index, q.size, q.desc)).collect();
    assert_eq!(queues, [(0, 64, 0x10000), (2, 64, 0x30000)], "fewer queues than there are");
    assert!(guest.function.describe().unwrap().driver_ok);
}

#[test]
fn features_that_cannot_be_are_refused() {
    let guest = Guest::new();
    for features in [RING_EVENT_IDX, WANTED | 2, WANTED | 1 << 63, WANTED | LONELY, 0] {
        guest.set_status(0);
        guest.negotiate(features);
        assert_eq!(guest.status() & FEATURES_OK, 0, "{features:#x}");
        guest.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
        assert_eq!(guest.status() & DRIVER_OK, 0, "no driver without features");
    }
    guest.set_status(0);
    guest.negotiate(WANTED | LONELY | 1);
    assert_ne!(guest.status() & FEATURES_OK, 0);
    guest.write(0x08, 4, 0);
    guest.write(0x0c, 4, 0);
    assert_eq!(
        guest.read(0x0c, 4),
        u64::from(LONELY as u32 | 1 | RING_EVENT_IDX as u32),
        "settled"
    );
    guest.set_status(FAILED);
    assert_eq!(guest.status() & FAILED, FAILED);
    assert!(guest.device.orders().is_empty());
}

#[test]
fn a_ring_outside_of_memory_is_never_handed_on() {
    for at in [0x00ff_f000, 0x10_0000_0000, (u64::MAX - 0xffff) & !0xf, 0x10008] {
        let guest = Guest::new();
        guest.set_status(0);
        guest.negotiate(WANTED);
        guest.set_up_queue(0, 64, at);
        assert_eq!(guest.read(0x1c, 2), 0, "{at:#x}");
        assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
        guest.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(guest.status() & DRIVER_OK, 0);
        assert!(guest.device.orders().is_empty());
        guest.drive(WANTED, &[0]);
        assert_eq!(guest.device.orders().len(), 1, "a reset makes all well");
    }
}

#[test]
fn queue_registers_hold_still_once_the_queue_is_enabled() {
    let guest = Guest::new();
    guest.set_status(0);
    guest.negotiate(WANTED);
    for size in [0, 3, 512, 0xffff] {
        guest.write(0x18, 2, size);
        assert_eq!(guest.read(0x18, 2), 256, "{size}");
    }
    guest.set_up_queue(0, 128, 0x10000);
    guest.write(0x18, 2, 64);
    guest.write(0x20, 4, 0x5000);
    guest.write(0x1c, 2, 0);
    assert_eq!((guest.read(0x18, 2), guest.read(0x20, 8)), (128, 0x10000));
    assert_eq!(guest.read(0x1c, 2), 1, "only a reset disables");
    guest.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    guest.set_up_queue(1, 64, 0x30000);
    assert_eq!(guest.read(0x1c, 2), 0, "too late");
    guest.write(0x16, 2, 77);
    assert_eq!((guest.read(0x18, 2), guest.read(0x1a, 2)), (0, u64::from(NO_VECTOR)));
}

#[test]
fn firmware_and_then_a_kernel_with_other_queues_drive_one_device() {
    let guest = Guest::new();
    guest.drive(WANTED, &[0]);
    guest.drive(VERSION_1, &[0, 1, 2]);
    let orders = guest.device.orders();
    let [Order::Activate(first), Order::Reset(1), Order::Activate(second)] = &orders[..] else {
        panic!("{orders:?}")
    };
    assert_eq!((first.queues.len(), second.queues.len()), (1, 3));
    assert_ne!(first.life, second.life);
}

#[test]
fn status_is_zero_only_when_the_device_has_stopped() {
    let guest = Guest::with(Recorder::new(false));
    guest.set_status(0);
    assert_eq!(guest.status(), 0, "nothing ran, nothing to wait for");
    guest.drive(WANTED, &[0]);
    let ready = guest.status();
    guest.set_status(0);
    assert_eq!(guest.status(), ready, "still stopping");
    guest.set_status(0);
    assert_eq!(guest.status(), ready, "impatience changes nothing");
    guest.device.link().reset_done(1);
    assert_eq!(guest.status(), 0);
    // SeaBIOS and OVMF do not wait.
    guest.drive(WANTED, &[0]);
    guest.set_status(0);
    guest.set_status(ACKNOWLEDGE);
    assert_eq!(guest.status(), ACKNOWLEDGE);
    guest.drive(WANTED, &[0]);
    let kinds: Vec<_> = guest.device.orders().iter().map(std::mem::discriminant).collect();
    assert_eq!(kinds.len(), 5);
    assert_eq!((kinds[1], kinds[2]), (kinds[3], kinds[4]), "reset, then the next driver");
}

#[test]
fn vectors_are_the_tables_or_none() {
    let guest = Guest::new();
    guest.write(0x10, 2, 4);
    assert_eq!(guest.read(0x10, 2), u64::from(NO_VECTOR));
    guest.write(0x10, 2, 3);
    assert_eq!(guest.read(0x10, 2), 3);
    guest.drive(WANTED, &[0, 1]);
    guest.device.orders();
    for vector in [0x1234, 2] {
        guest.write(0x16, 2, 1);
        guest.write(0x1a, 2, vector);
    }
    guest.write(0x16, 2, 2);
    guest.write(0x1a, 2, 1);
    let orders = guest.device.orders();
    let [Order::SetCall(1, false), Order::SetCall(1, true)] = &orders[..] else {
        panic!("only running queues: {orders:?}")
    };
}

#[test]
fn a_changed_configuration_is_told_once_and_has_a_new_generation() {
    let guest = Guest::new();
    assert_eq!(guest.read(0x1000, 8), 0x0807_0605_0403_0201);
    assert_eq!((guest.read(0x1004, 4), guest.read(0x1006, 4)), (0x0807_0605, 0x0807));
    let generation = guest.read(0x15, 1);
    guest.device.link().set_config(&[9; 8]);
    assert_ne!(guest.read(0x15, 1), generation);
    guest.drive(WANTED, &[0]);
    guest.write(0x10, 2, 0);
    let vector = Arc::clone(&guest.host.vectors.lock().unwrap()[0]);
    assert_eq!((guest.read(0x800, 1), vector.signalled()), (0, false), "no driver was there");
    guest.device.link().set_config(&[9; 8]);
    assert!(!vector.signalled(), "no change");
    guest.device.link().set_config(&[8; 8]);
    assert!(vector.signalled());
    assert_eq!((guest.read(0x800, 1), guest.read(0x800, 1)), (2, 0), "reading clears");
    let life = guest.device.link().life();
    guest.device.link().fail(life);
    assert!(vector.signalled() && guest.status() & NEEDS_RESET != 0);
    guest.drive(WANTED, &[0]);
    guest.device.link().fail(life);
    assert_eq!(guest.status() & NEEDS_RESET, 0, "the failure of an earlier life");
}

#[test]
fn notify_addresses_are_bound_while_the_device_works_and_the_bar_is_mapped() {
    let guest = Guest::new();
    let bound = || {
        let mut bound = guest.host.bound.lock().unwrap().clone();
        bound.sort_unstable();
        bound
    };
    guest.drive(WANTED, &[0, 2]);
    assert!(bound().is_empty(), "the BAR is nowhere");
    guest.function.mapped(0, Some(0xc000_0000));
    assert_eq!(bound(), [0xc000_2000, 0xc000_2008]);
    guest.function.mapped(0, None);
    assert!(bound().is_empty());
    guest.function.mapped(0, Some(0xd000_0000));
    assert_eq!(bound(), [0xd000_2000, 0xd000_2008]);
    guest.set_status(0);
    assert!(bound().is_empty());
    guest.drive(WANTED, &[1]);
    assert_eq!(bound(), [0xd000_2004]);
}

#[test]
fn a_notification_that_kvm_does_not_take_arrives_all_the_same() {
    let guest = Guest::new();
    guest.write(0x2004, 2, 1);
    guest.drive(WANTED, &[1]);
    let orders = guest.device.orders();
    let [Order::Activate(activation)] = &orders[..] else { panic!("{orders:?}") };
    let kick = &activation.queues[0].kick;
    assert!(kick.read().is_err(), "a kick before the driver was ready");
    for (offset, width) in [(0x2004, 2), (0x2004, 4), (0x2005, 1)] {
        guest.write(offset, width, 1);
        assert_eq!(kick.read().unwrap(), 1);
    }
    guest.write(0x2000, 2, 0);
    guest.write(0x2fff, 4, 0);
    assert!(kick.read().is_err());
}

#[test]
fn the_window_through_configuration_space_reaches_every_register() {
    let guest = Guest::new();
    let window = guest.capabilities()[5].2;
    let aim = |offset: u32, len: u32| {
        guest.config_write(window + 4, 1, 0);
        guest.config_write(window + 8, 4, offset);
        guest.config_write(window + 12, 4, len);
    };
    aim(0x14, 1);
    guest.config_write(window + 16, 1, ACKNOWLEDGE.into());
    assert_eq!(guest.status(), ACKNOWLEDGE);
    assert_eq!(guest.config_read(window + 16) & 0xff, u32::from(ACKNOWLEDGE));
    aim(0x12, 2);
    assert_eq!(guest.config_read(window + 16) & 0xffff, 3);
    aim(0x1004, 4);
    assert_eq!(guest.config_read(window + 16), 0x0807_0605);
    for (offset, len) in [(0x4000, 4), (0x3ffe, 4), (u32::MAX, 1), (0x14, 3), (0x15, 2)] {
        aim(offset, len);
        guest.config_read(window + 16);
        guest.config_write(window + 16, 4, u32::MAX);
    }
    guest.config_write(window + 4, 1, 1);
    guest.config_write(window + 8, 4, 0x14);
    guest.config_write(window + 12, 4, 1);
    guest.config_write(window + 16, 1, 0);
    assert_eq!(guest.status(), ACKNOWLEDGE, "another BAR is another BAR");
}

#[test]
fn msix_is_where_the_capability_says() {
    let guest = Guest::new();
    let at = guest.capabilities()[0].2;
    for (word, value) in [(0, 0xfee0_0000), (4, 0), (8, 0x41), (12, 0)] {
        guest.write(0x3010 + word, 4, value);
    }
    guest.config_write(at + 2, 2, 0x8000);
    let vector = Arc::clone(&guest.host.vectors.lock().unwrap()[1]);
    assert_eq!(vector.bound(), Some((0xfee0_0000, 0x41)));
    guest.config_write(at + 3, 1, 0xc0);
    assert_eq!(vector.bound(), None);
    assert_eq!(guest.config_read(at) >> 16, 0xc003);
    PciFunction::reset(&*guest.function);
    assert_eq!((guest.config_read(at) >> 16, guest.read(0x301c, 4)), (3, 1));
}

#[test]
fn power_on_reset_stops_the_device() {
    let guest = Guest::new();
    guest.function.mapped(0, Some(0xc000_0000));
    guest.drive(WANTED, &[0]);
    guest.device.orders();
    Device::reset(&*guest.function);
    let orders = guest.device.orders();
    assert!(matches!(&orders[..], [Order::Reset(1)]), "{orders:?}");
    assert!(guest.host.bound.lock().unwrap().is_empty());
    assert_eq!((guest.status(), guest.read(0x0c, 4)), (0, 0));
}

#[test]
fn state_round_trips_to_a_function_that_goes_on() {
    let guest = Guest::new();
    guest.config_write(0x04, 2, 2);
    guest.config_write(0x10, 4, 0xc000_0000);
    guest.write(0x10, 2, 0);
    guest.drive(WANTED, &[0, 2]);
    guest.write(0x10, 2, 3);
    guest.device.link().set_config(&[7; 8]);
    let Declared::State(payload) = guest.function.declare() else { panic!("movable") };
    let moved = Guest::new();
    moved.function.restore(&payload).unwrap();
    let orders = moved.device.orders();
    let [Order::Restore(Some(activation))] = &orders[..] else { panic!("{orders:?}") };
    assert_eq!(activation.queues.len(), 2);
    assert_eq!(moved.function.regions()[0].base, 0xc000_0000);
    assert_eq!(moved.status(), guest.status());
    assert_eq!(moved.read(0x10, 2), 3);
    // What the new back end says differs from what the driver knows: the driver hears of it.
    assert_eq!(moved.read(0x1000, 8), 0x0807_0605_0403_0201);
    assert!(moved.host.vectors.lock().unwrap()[3].signalled());
    assert_ne!(moved.read(0x15, 1), guest.read(0x15, 1));
}

#[test]
fn state_that_cannot_be_is_refused() {
    let guest = Guest::new();
    guest.drive(WANTED, &[0]);
    let Declared::State(payload) = guest.function.declare() else { panic!("movable") };
    let good: TransportState = payload.read(TRANSPORT, 1).unwrap();
    type Spoil = fn(&mut TransportState);
    let wrongs: [(Spoil, &str); 9] = [
        (|s| s.registers = None, "no registers"),
        (|s| s.device = None, "no device"),
        (|s| s.config[2] = 0x41, "1af4:1041"),
        (|s| s.msix.as_mut().unwrap().entries.truncate(3), "table of 3 entries"),
        (|s| s.registers.as_mut().unwrap().queues.truncate(2), "2 queues"),
        (|s| s.registers.as_mut().unwrap().queues[0].size = 48, "48 entries"),
        (|s| s.registers.as_mut().unwrap().queues[0].desc = 1 << 40, "outside of guest memory"),
        (|s| s.registers.as_mut().unwrap().features |= 2, "features 0x2"),
        (|s| s.registers.as_mut().unwrap().status = 0x200, "status of 0x200"),
    ];
    for (spoil, why) in wrongs {
        let mut state = good.clone();
        spoil(&mut state);
        let moved = Guest::new();
        let error = moved.function.restore(&Payload::new(TRANSPORT, 1, &state)).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert!(moved.device.orders().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn no_access_panics(data in prop::collection::vec(any::<u8>(), 0..700)) {
        virtio_accesses(&data);
    }

    #[test]
    fn no_order_of_good_writes_panics(
        writes in prop::collection::vec((0u64..0x40, 0usize..4, prop::sample::select(
            &[0u32, 1, 2, 3, 4, 8, 11, 15, 64, 0x1000, 0x8000, 0xffff, u32::MAX][..])), 0..120)
    ) {
        let mut data = Vec::new();
        for (offset, width, value) in writes {
            data.extend([3 | (width as u8) << 3, offset as u8, 0]);
            data.extend(value.to_le_bytes());
        }
        virtio_accesses(&data);
    }

    #[test]
    fn no_state_panics(data in prop::collection::vec(any::<u8>(), 0..200)) {
        virtio_state(&data);
    }
}
