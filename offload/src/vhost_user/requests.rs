//! What each request of a front end means (vhost-user, "Front-end message types").
//!
//! Invariants: a handler that refuses has changed nothing; indices and sizes are compared here, so that the rest of
//! the session and the shell can rely on them. Descriptors that come with a request that takes none are dropped, and
//! so closed.

use super::codec::{
    Area, Config, InflightArea, MAX_CONFIG, Reply, Request, VringAddr, VringFd, VringState,
    protocol,
};
use super::session::{Outcome, Record, Session, Then, offered_features, offered_protocol};
use super::types::{Action, Change, Offer, SharedArea, SharedRegion};
use super::vring::{Kick, Run, Vring};
use super::{FEATURE_LOG_ALL, FEATURE_PROTOCOL_FEATURES};
use crate::memory::{MAX_REGIONS, RegionDescriptor};

/// A refusal's reason.
type Refused = String;

impl<F: Clone> Session<F> {
    /// Decides on a request. What it can do at once, it does.
    pub(super) fn handle(
        &mut self,
        offer: &Offer,
        request: Request,
        fds: &[F],
        actions: &mut Vec<Action<F>>,
    ) -> Outcome<F> {
        let number = |n: u64| Ok(Outcome::Reply(Reply::U64(n)));
        let outcome = match request {
            Request::GetFeatures => number(offered_features(offer)),
            Request::GetProtocolFeatures => number(offered_protocol(offer)),
            Request::GetQueueNum => number(offer.queues.into()),
            Request::GetMaxMemSlots => number(MAX_REGIONS as u64),
            Request::SetFeatures(features) => self.set_features(offer, features, actions),
            Request::SetProtocolFeatures(bits) => self.set_protocol_features(offer, bits),
            Request::SetOwner => Ok(Outcome::Done),
            Request::ResetOwner => Ok(Outcome::Stop(self.running(), Then::Reset)),
            Request::ResetDevice => self
                .needs(protocol::RESET_DEVICE)
                .map(|()| Outcome::Stop(self.running(), Then::Reset)),
            Request::SetMemTable(regions) => self.set_mem_table(&regions, fds),
            Request::AddMemReg(region) => self.add_region(region, fds),
            Request::RemMemReg(region) => self.remove_region(&region),
            Request::SetLogBase(area) => self.set_log(area, fds),
            Request::SetLogFd => one(fds).map(|fd| {
                self.log_fd = Some(fd);
                Outcome::Done
            }),
            Request::SetBackendReqFd => self.needs(protocol::BACKEND_REQ).and_then(|()| {
                self.channel = Some(one(fds)?);
                Ok(Outcome::Done)
            }),
            Request::SetVringNum(state) => self.set_vring_num(offer, state),
            Request::SetVringBase(state) => self.set_vring_base(state),
            Request::SetVringAddr(addr) => self.set_vring_addr(addr, actions),
            Request::GetVringBase(state) => self.get_vring_base(state),
            Request::SetVringEnable(state) => self.set_vring_enable(state),
            Request::SetVringKick(ring) => self.set_vring_kick(ring, fds),
            Request::SetVringCall(ring) => self.set_notifier(ring, fds, actions, true),
            Request::SetVringErr(ring) => self.set_notifier(ring, fds, actions, false),
            Request::GetConfig(config) => Ok(get_config(offer, config)),
            Request::SetConfig(config) => self.set_config(offer, config, actions),
            Request::GetInflightFd(area) => self.get_record(offer, area),
            Request::SetInflightFd(area) => self.set_record(offer, area, fds),
            Request::NetSetMtu(mtu) => self.needs(protocol::MTU).map(|()| {
                actions.push(Action::Mtu(mtu));
                Outcome::Done
            }),
            // Not offered: what they would tell, the rings tell better.
            Request::SetStatus(_) | Request::GetStatus => {
                self.needs(protocol::STATUS).map(|()| Outcome::Done)
            }
        };
        outcome.unwrap_or_else(Outcome::Refused)
    }

    fn needs(&self, bit: u64) -> Result<(), Refused> {
        if self.protocol & bit == bit {
            Ok(())
        } else {
            Err(format!("a request that needs protocol feature {bit:#x}, which was not negotiated"))
        }
    }

    /// The ring of a request, if the device has it.
    fn ring(&mut self, index: u32) -> Result<(u16, &mut Vring<F>), Refused> {
        let count = self.vrings.len();
        u16::try_from(index)
            .ok()
            .and_then(|i| Some((i, self.vrings.get_mut(usize::from(i))?)))
            .ok_or_else(|| format!("queue {index} of a device that has {count}"))
    }

    /// The ring of a request that only a ring at rest can take.
    fn resting_ring(&mut self, index: u32) -> Result<&mut Vring<F>, Refused> {
        let (_, ring) = self.ring(index)?;
        if ring.run == Run::Stopped {
            Ok(ring)
        } else {
            Err(format!("queue {index} was changed while it ran"))
        }
    }

    fn set_features(
        &mut self,
        offer: &Offer,
        features: u64,
        actions: &mut Vec<Action<F>>,
    ) -> Result<Outcome<F>, Refused> {
        let unknown = features & !offered_features(offer);
        if unknown != 0 {
            return Err(format!("features {unknown:#x} were acknowledged and never offered"));
        }
        let changed = self.features.map_or(0, |before| before ^ features);
        let running = self.vrings.iter().any(|ring| ring.run != Run::Stopped);
        // A front end turns the log on and off, and tells the rest again, while its rings run.
        if running && changed & !FEATURE_LOG_ALL != 0 {
            return Err(format!("features {changed:#x} changed while rings ran"));
        }
        self.features = Some(features);
        actions.push(Action::Features(features & !(FEATURE_LOG_ALL | FEATURE_PROTOCOL_FEATURES)));
        if changed & FEATURE_LOG_ALL != 0 {
            self.change_logs(actions);
        }
        Ok(Outcome::Done)
    }

    fn set_protocol_features(&mut self, offer: &Offer, bits: u64) -> Result<Outcome<F>, Refused> {
        let unknown = bits & !offered_protocol(offer);
        if unknown != 0 {
            return Err(format!("protocol features {unknown:#x} were never offered"));
        }
        self.protocol = bits;
        Ok(Outcome::Done)
    }

    fn shared(&mut self, region: RegionDescriptor, fd: F) -> SharedRegion<F> {
        let id = self.next_region;
        self.next_region += 1;
        SharedRegion { id, region, fd, claims: 1 }
    }

    fn set_mem_table(
        &mut self,
        regions: &[RegionDescriptor],
        fds: &[F],
    ) -> Result<Outcome<F>, Refused> {
        if regions.len() != fds.len() {
            return Err(format!("{} memory regions with {} files", regions.len(), fds.len()));
        }
        let pairs = regions.iter().zip(fds);
        let table = pairs.map(|(region, fd)| self.shared(*region, fd.clone())).collect();
        Ok(Outcome::Stop(self.running(), Then::Memory(table)))
    }

    fn add_region(&mut self, region: RegionDescriptor, fds: &[F]) -> Result<Outcome<F>, Refused> {
        self.needs(protocol::CONFIGURE_MEM_SLOTS)?;
        let fd = one(fds)?;
        if let Some(known) = self.regions.iter_mut().find(|known| known.region == region) {
            // The mapping that is there serves: it is the same part of the guest's memory.
            known.claims = known.claims.saturating_add(1);
            return Ok(Outcome::Done);
        }
        if self.regions.len() >= MAX_REGIONS {
            return Err(format!("more than {MAX_REGIONS} memory regions"));
        }
        let mut table = self.regions.clone();
        table.push(self.shared(region, fd));
        Ok(Outcome::Stop(self.running(), Then::Memory(table)))
    }

    fn remove_region(&mut self, region: &RegionDescriptor) -> Result<Outcome<F>, Refused> {
        self.needs(protocol::CONFIGURE_MEM_SLOTS)?;
        let is = |shared: &SharedRegion<F>| {
            let known = &shared.region;
            known.guest_addr == region.guest_addr
                && known.size == region.size
                && known.user_addr == region.user_addr
        };
        let at = self.regions.iter().position(is);
        let at = at.ok_or("a memory region was removed that is not there")?;
        if self.regions[at].claims > 1 {
            self.regions[at].claims -= 1;
            return Ok(Outcome::Done);
        }
        let mut table = self.regions.clone();
        table.remove(at);
        Ok(Outcome::Stop(self.running(), Then::Memory(table)))
    }

    fn set_log(&mut self, area: Area, fds: &[F]) -> Result<Outcome<F>, Refused> {
        self.needs(protocol::LOG_SHMFD)?;
        let area = SharedArea { fd: one(fds)?, offset: area.offset, size: area.size };
        Ok(Outcome::Ask(Action::MapLog(Some(area.clone())), Then::Log(area)))
    }

    fn set_vring_num(&mut self, offer: &Offer, state: VringState) -> Result<Outcome<F>, Refused> {
        let size = u16::try_from(state.num).ok();
        let size = size.filter(|n| n.is_power_of_two() && *n <= offer.max_queue_size);
        let ring = self.resting_ring(state.index)?;
        ring.size = size.ok_or_else(|| {
            format!(
                "a queue of {} descriptors; up to {} are offered",
                state.num, offer.max_queue_size
            )
        })?;
        Ok(Outcome::Done)
    }

    fn set_vring_base(&mut self, state: VringState) -> Result<Outcome<F>, Refused> {
        let base = u16::try_from(state.num).map_err(|_| format!("a vring base of {}", state.num));
        self.resting_ring(state.index)?.base = base?;
        Ok(Outcome::Done)
    }

    /// On a running ring only the log may change, as when a migration begins; a ring that moves is stopped and started
    /// where it is now.
    fn set_vring_addr(
        &mut self,
        addr: VringAddr,
        actions: &mut Vec<Action<F>>,
    ) -> Result<Outcome<F>, Refused> {
        let (index, ring) = self.ring(addr.index)?;
        let place = |a: &VringAddr| (a.descriptors, a.available, a.used);
        let moved = ring.addr.as_ref().map(place) != Some(place(&addr));
        let running = ring.run == Run::Running;
        ring.addr = Some(addr);
        if running && moved {
            return Ok(Outcome::Stop(vec![index], Then::Settle));
        }
        if running {
            actions.push(Action::ChangeRing(index, self.log_change(index)));
        }
        Ok(Outcome::Done)
    }

    fn get_vring_base(&mut self, state: VringState) -> Result<Outcome<F>, Refused> {
        let (index, ring) = self.ring(state.index)?;
        ring.kick = Kick::Unset;
        Ok(Outcome::Stop(vec![index], Then::GiveBase(index)))
    }

    fn set_vring_enable(&mut self, state: VringState) -> Result<Outcome<F>, Refused> {
        let (index, ring) = self.ring(state.index)?;
        ring.enabled = match state.num {
            0 => Some(false),
            1 => Some(true),
            other => return Err(format!("queue {index} was enabled with {other}")),
        };
        if state.num == 0 && ring.run == Run::Running {
            return Ok(Outcome::Stop(vec![index], Then::Settle));
        }
        Ok(Outcome::Done)
    }

    fn set_vring_kick(&mut self, ring: VringFd, fds: &[F]) -> Result<Outcome<F>, Refused> {
        let kick = if ring.has_fd { Kick::Fd(one(fds)?) } else { Kick::Polled };
        let (index, ring) = self.ring(ring.index.into())?;
        ring.kick = kick;
        if ring.run == Run::Running {
            return Ok(Outcome::Stop(vec![index], Then::Settle));
        }
        Ok(Outcome::Done)
    }

    fn set_notifier(
        &mut self,
        ring: VringFd,
        fds: &[F],
        actions: &mut Vec<Action<F>>,
        call: bool,
    ) -> Result<Outcome<F>, Refused> {
        let fd = if ring.has_fd { Some(one(fds)?) } else { None };
        let (index, ring) = self.ring(ring.index.into())?;
        let running = ring.run == Run::Running;
        let change = if call {
            ring.call.clone_from(&fd);
            Change::Call(fd)
        } else {
            ring.error.clone_from(&fd);
            Change::Error(fd)
        };
        if running {
            actions.push(Action::ChangeRing(index, change));
        }
        Ok(Outcome::Done)
    }

    fn set_config(
        &mut self,
        offer: &Offer,
        config: Config,
        actions: &mut Vec<Action<F>>,
    ) -> Result<Outcome<F>, Refused> {
        self.needs(protocol::CONFIG)?;
        let end = config.offset.checked_add(config.bytes.len() as u32);
        let writable = &offer.config_writable;
        if config.offset < writable.start || end.is_none_or(|end| end > writable.end) {
            return Err(format!(
                "{} bytes at {} of the configuration space cannot be written",
                config.bytes.len(),
                config.offset
            ));
        }
        actions.push(Action::WriteConfig(config.offset, config.bytes));
        Ok(Outcome::Done)
    }

    fn get_record(&mut self, offer: &Offer, area: InflightArea) -> Result<Outcome<F>, Refused> {
        self.needs(protocol::INFLIGHT_SHMFD)?;
        let InflightArea { queues, queue_size, .. } = area;
        if !record_fits(offer, queues, queue_size) {
            let none = InflightArea { area: Area { size: 0, offset: 0 }, ..area };
            return Ok(Outcome::Reply(Reply::Inflight(none)));
        }
        let make = Action::MakeInflight { queues, queue_size };
        Ok(Outcome::Ask(make, Then::SendRecord(queues, queue_size)))
    }

    fn set_record(
        &mut self,
        offer: &Offer,
        area: InflightArea,
        fds: &[F],
    ) -> Result<Outcome<F>, Refused> {
        self.needs(protocol::INFLIGHT_SHMFD)?;
        let InflightArea { area: Area { size, offset }, queues, queue_size } = area;
        if !record_fits(offer, queues, queue_size) {
            return Err(format!("an in-flight record for {queues} queues of {queue_size}"));
        }
        if self.vrings.iter().any(|ring| ring.run != Run::Stopped) {
            return Err("the in-flight record was changed while rings ran".to_owned());
        }
        let area = SharedArea { fd: one(fds)?, offset, size };
        let ask = Action::MapInflight(Some((area.clone(), queues, queue_size)));
        Ok(Outcome::Ask(ask, Then::Record(Record { area, queues, queue_size })))
    }
}

fn record_fits(offer: &Offer, queues: u16, queue_size: u16) -> bool {
    (1..=offer.queues).contains(&queues) && (1..=offer.max_queue_size).contains(&queue_size)
}

/// The descriptor of a request that takes one.
fn one<F: Clone>(fds: &[F]) -> Result<F, Refused> {
    match fds {
        [fd] => Ok(fd.clone()),
        _ => Err(format!("{} descriptors came with a request that takes one", fds.len())),
    }
}

/// Behind the device's own configuration come zeroes: a front end may know a longer structure than the device.
fn get_config<F>(offer: &Offer, config: Config) -> Outcome<F> {
    let Config { offset, flags, mut bytes } = config;
    let end = offset as usize + bytes.len();
    if offer.config.is_empty() || bytes.is_empty() || end > MAX_CONFIG {
        bytes.clear();
    }
    for (at, byte) in (offset as usize..).zip(&mut bytes) {
        *byte = offer.config.get(at).copied().unwrap_or(0);
    }
    Outcome::Reply(Reply::Config(Config { offset, flags, bytes }))
}
