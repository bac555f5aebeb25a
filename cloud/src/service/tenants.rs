//! What the tenants' API needs of the control plane.

use super::{ChangeError, Control};
use crate::ecs::dispatch::{Cloud, Done, Plan, World};
use crate::ecs::refusal::Refusal;
use crate::store::StoreError;
use std::pin::Pin;

impl Cloud for Control {
    fn look(&self, look: &mut dyn FnMut(World<'_>)) {
        let (view, live) = (self.view(), self.live());
        let alive = live.alive();
        look(World { view: &view, alive: &alive, live: Some(&live) });
    }

    fn change(
        &self,
        mut plan: Plan,
    ) -> Pin<Box<dyn Future<Output = Result<Done, Refusal>> + Send + '_>> {
        Box::pin(async move {
            let planned = Control::change(self, |view, alive, context| {
                plan(World { view, alive, live: None }, context)
            });
            planned.await.map_err(|error| match error {
                ChangeError::Refused(refusal) => refusal,
                ChangeError::Store(error) => unavailable(&error),
                ChangeError::Contended => {
                    let message = "Too many requests change the same resources.";
                    Refusal::new(503, "ServiceUnavailable", message, "Try again.")
                }
            })
        })
    }
}

/// Tenants are told that it is not their fault, and no more: the operator's log has the rest.
fn unavailable(error: &StoreError) -> Refusal {
    tracing::error!(%error, "a request was not kept");
    let message = "The request cannot be kept at the moment.";
    Refusal::new(503, "ServiceUnavailable", message, "Try again with the same ClientToken.")
}
