//! Our own back end's session in place of the model: the two pure sides of the protocol face to face.
//!
//! What a card's shell would do for the session is written down as a [`Model`], so that the same checks apply. A ring that is
//! disabled does not run there, and what is not running is not looked at.

use super::super::{Descriptor, Incoming, LogArea, Outgoing};
use super::model::{Model, ModelRing, Offer, Shared, parse, region};
use crate::vhost_user::{Action, Change, Event, Offer as CardOffer, Session};
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

/// A descriptor, and how often it had been replaced when it was sent.
type Token = (Descriptor, u32);

/// A back end's session, and what its shell has been told.
pub struct Card {
    session: Session<Token>,
    offer: CardOffer,
    view: Model,
}

/// A back end.
pub enum Peer {
    Model(Box<Model>),
    Card(Box<Card>),
}

impl Deref for Peer {
    type Target = Model;

    fn deref(&self) -> &Model {
        match self {
            Self::Model(model) => model,
            Self::Card(card) => &card.view,
        }
    }
}

impl DerefMut for Peer {
    fn deref_mut(&mut self) -> &mut Model {
        match self {
            Self::Model(model) => model,
            Self::Card(card) => &mut card.view,
        }
    }
}

impl Peer {
    pub fn new(offer: &Offer, card: bool) -> Self {
        if !card {
            return Self::Model(Box::default());
        }
        let own = 1 << 30 | 1 << 26;
        let offer = CardOffer {
            features: offer.features & !own,
            config: offer.config.clone(),
            config_writable: 0..0,
            queues: offer.rings as u16,
            max_queue_size: 1024,
            inflight: offer.has(12),
            mtu: false,
        };
        let session = Session::new(&offer);
        Self::Card(Box::new(Card { session, offer, view: Model::default() }))
    }

    pub fn is_card(&self) -> bool {
        matches!(self, Self::Card(_))
    }

    /// Handles a message; answers, if any are due.
    pub fn handle(&mut self, message: &Outgoing, shared: &Shared<'_>) -> Vec<Incoming> {
        match self {
            Self::Model(model) => model.handle(message, shared).into_iter().collect(),
            Self::Card(card) => card.handle(message, shared),
        }
    }
}

impl Card {
    fn handle(&mut self, message: &Outgoing, shared: &Shared<'_>) -> Vec<Incoming> {
        assert!(self.session.wants_message());
        let (header, payload) = parse(&message.encode());
        let token = |name: &Descriptor| match name {
            Descriptor::Call(index) => (*name, shared.calls.get(index).copied().unwrap_or(0)),
            _ => (*name, 0),
        };
        let fds = message.descriptors.iter().map(token).collect();
        let mut events = VecDeque::from([Event::Message { header, payload, fds }]);
        let mut answers = Vec::new();
        while let Some(event) = events.pop_front() {
            for action in self.session.step(&self.offer, event) {
                events.extend(self.act(action, shared, &mut answers));
            }
        }
        answers
    }

    /// Does what the session says; what comes of it.
    fn act(
        &mut self,
        action: Action<Token>,
        shared: &Shared<'_>,
        answers: &mut Vec<Incoming>,
    ) -> Option<Event<Token>> {
        let view = &mut self.view;
        match action {
            Action::Send(bytes, fds) => {
                let (header, payload) = parse(&bytes);
                answers.push(Incoming { header, payload, descriptors: fds.len() });
            }
            Action::MapMemory(regions) => {
                view.memory = Vec::new();
                for told in &regions {
                    let (Descriptor::Memory(slot), _) = told.fd else { panic!("{told:?}") };
                    view.memory.push(region(&told.region, slot));
                }
                return Some(Event::Done(Ok(())));
            }
            Action::MapLog(area) => {
                view.log = area.map(|area| LogArea { size: area.size, offset: area.offset });
                return Some(Event::Done(Ok(())));
            }
            Action::MakeInflight { .. } => {
                // As large as any record here is, and another one each time.
                let size = (1 << 20) + shared.next_record;
                return Some(Event::InflightMade(Ok(((Descriptor::Record, 0), size))));
            }
            Action::MapInflight(record) => {
                view.record = record.map(|(area, _, _)| area.size);
                return Some(Event::Done(Ok(())));
            }
            Action::StartRing(setup) => {
                let addr = setup.addr;
                assert_eq!(setup.base, shared.used[&setup.index], "a ring goes on where it stood");
                assert!(!view.memory.is_empty() && setup.kick.is_some());
                let ring = ModelRing {
                    size: Some(setup.size),
                    base: Some(setup.base),
                    addresses: Some([addr.descriptors, addr.available, addr.used]),
                    logged: addr.flags & 1 != 0,
                    call: setup.call.map(|(_, replaced)| replaced),
                    kicked: true,
                    enabled: true,
                };
                view.rings.insert(setup.index, ring);
            }
            Action::StopRing(index) => {
                view.rings.entry(index).or_default().kicked = false;
                return Some(Event::RingStopped { index, base: shared.used[&index] });
            }
            Action::ChangeRing(index, change) => {
                let ring = view.rings.entry(index).or_default();
                match change {
                    Change::Call(call) => ring.call = call.map(|(_, replaced)| replaced),
                    Change::Log { on, used } => ring.logged = on && used.is_some(),
                    Change::Error(_) => {}
                }
            }
            Action::Features(features) => view.features = Some(features),
            Action::SendRequest(..) | Action::Mtu(_) | Action::WriteConfig(..) => {}
            Action::End(reason) => panic!("our front end made our back end give up: {reason}"),
        }
        None
    }
}
