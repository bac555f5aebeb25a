//! From a believed call to its reply: what is common to all actions.
//!
//! An action first reads its parameters, all of them, and says what it would do as [`Work`]; only then the model is
//! looked at. `DryRun` and `ClientToken` are handled here, once for every action that documents them: a dry run plans and
//! throws the plan away; a token that was used is answered with what was answered then, in the same transaction that
//! would have done the work, so that two requests at once do it once.

use super::actions;
use super::documented::Action;
use super::refusal::Refusal;
use super::wire::authenticate::Call;
use super::wire::params::Params;
use crate::model::{ClientToken, Draft, View};
use crate::plan::Context;
use crate::service::Live;
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;

/// The fields of a reply, without its RequestId.
pub type Reply = Map<String, Value>;

/// What an action that changes something answers.
#[derive(Debug, Default)]
pub struct Done {
    /// The ids that it made, kept with a ClientToken.
    pub ids: Vec<String>,
    /// The reply.
    pub reply: Reply,
}

/// What an action sees.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// The model.
    pub view: &'a View,
    /// The servers whose agents were heard lately.
    pub alive: &'a BTreeSet<String>,
    /// What servers told last; plans of changes do without.
    pub live: Option<&'a Live>,
}

/// Looks at the world.
pub type Look = Box<dyn FnOnce(World<'_>) -> Result<Reply, Refusal> + Send>;
/// Plans a change; called again if the model changed meanwhile.
pub type Plan =
    Box<dyn FnMut(World<'_>, &mut Context<'_>) -> Result<(Draft, Done), Refusal> + Send>;

/// What a call wants, when its parameters were read.
pub enum Work {
    /// To see.
    Look(Look),
    /// To change.
    Change {
        /// The plan.
        plan: Plan,
        /// The reply that names these ids, for a token that comes again.
        again: fn(&[String]) -> Reply,
    },
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Look(_) => "Look",
            Self::Change { .. } => "Change",
        })
    }
}

/// What the API needs of the control plane.
pub trait Cloud: Send + Sync {
    /// Shows the world as of now.
    fn look(&self, look: &mut dyn FnMut(World<'_>));

    /// Plans and commits, as often as it takes, and returns when the change is kept.
    fn change(
        &self,
        plan: Plan,
    ) -> Pin<Box<dyn Future<Output = Result<Done, Refusal>> + Send + '_>>;
}

/// Where this cloud is, as ECS names places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The region's id.
    pub region: String,
    /// The region's name, for people.
    pub name: String,
    /// The ids of its zones.
    pub zones: Vec<String>,
}

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The tenant.
    pub tenant: String,
    /// Where the call arrived, as the caller names it.
    pub host: String,
    /// Where this cloud is.
    pub place: Place,
}

/// A reply, and the names of parameters that meant nothing.
pub type Answered = (Reply, Vec<String>);

/// Does what a call wants.
pub async fn dispatch(cloud: &dyn Cloud, caller: &Caller, call: Call) -> Result<Answered, Refusal> {
    let Call { action, version, parameters, .. } = call;
    let read = actions::find(version, action.name).ok_or_else(|| {
        let message = format!("The action {} is not supported by this cloud yet.", action.name);
        Refusal::bad("UnsupportedOperation", message)
    })?;
    check_region(caller, action, &parameters)?;
    let fingerprint = fingerprint(action, &parameters);
    let mut params = Params::new(action, parameters)?;
    let documents = |name| action.request.contains_key(name);
    let dry = documents("DryRun") && params.boolean("DryRun")? == Some(true);
    let token = if documents("ClientToken") { client_token(&mut params)? } else { None };
    let work = read(&mut params, caller)?;
    let ignored = params.finish()?;
    let mut reply = match work {
        Work::Look(look) => see(cloud, look)?,
        Work::Change { mut plan, .. } if dry => {
            see(cloud, Box::new(move |world| dry_plan(&mut plan, world)))?
        }
        Work::Change { plan, again } => {
            let plan = match token {
                Some(token) => once(caller, action.name, token, fingerprint, plan, again),
                None => plan,
            };
            cloud.change(plan).await?.reply
        }
    };
    if dry {
        let message = "Request validation has been passed with DryRun flag set.";
        return Err(Refusal::bad("DryRunOperation", message));
    }
    // Paging fills in more than some actions document.
    reply.retain(|name, _| action.reply.contains_key(name.as_str()));
    Ok((reply, ignored))
}

fn see(cloud: &dyn Cloud, look: Look) -> Result<Reply, Refusal> {
    let (mut look, mut seen) = (Some(look), None);
    cloud.look(&mut |world| seen = look.take().map(|look| look(world)));
    seen.unwrap_or_else(|| Err(Refusal::internal()))
}

/// A plan whose ids nobody will see.
fn dry_plan(plan: &mut Plan, world: World<'_>) -> Result<Reply, Refusal> {
    let mut ids = crate::model::ids::Kernel;
    let mut context = Context { now: now(), ids: &mut ids };
    plan(world, &mut context).map(|_| Reply::new())
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// There is one region; whoever asks for regions may name any.
fn check_region(
    caller: &Caller,
    action: &Action,
    parameters: &BTreeMap<String, String>,
) -> Result<(), Refusal> {
    let needed = action.request.get("RegionId").is_some_and(|field| field.required);
    match parameters.get("RegionId") {
        None if needed => Err(Refusal::missing("RegionId")),
        Some(region) if *region != caller.place.region && action.name != "DescribeRegions" => {
            let message = format!(
                "The specified RegionId does not exist: it is {region:?}, and here it is {:?}.",
                caller.place.region
            );
            Err(Refusal::not_found("InvalidRegionId.NotFound", message))
        }
        _ => Ok(()),
    }
}

fn client_token(params: &mut Params) -> Result<Option<String>, Refusal> {
    let Some(token) = params.name("ClientToken", 1..=64)? else { return Ok(None) };
    match token.is_ascii() {
        true => Ok(Some(token)),
        false => Err(Refusal::invalid("ClientToken", "it has characters outside of ASCII")),
    }
}

/// A digest of what a request with a token means.
fn fingerprint(action: &Action, parameters: &BTreeMap<String, String>) -> String {
    let mut text = action.name.to_owned();
    for (name, value) in parameters.iter().filter(|(name, _)| *name != "ClientToken") {
        text.push_str(&format!("\n{}:{name}={}:{value}", name.len(), value.len()));
    }
    let bytes = digest(&SHA256, text.as_bytes());
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The plan that is carried out once per token.
fn once(
    caller: &Caller,
    action: &'static str,
    token: String,
    fingerprint: String,
    mut plan: Plan,
    again: fn(&[String]) -> Reply,
) -> Plan {
    let tenant = caller.tenant.clone();
    Box::new(move |world, context| {
        match world.view.client_tokens.get(&ClientToken::key(&tenant, action, &token)) {
            Some(used) if used.fingerprint != fingerprint => {
                let message = "The request uses a client token of a previous request, but its \
                               parameters are not those of that request.";
                Err(Refusal::bad("IdempotentParameterMismatch", message)
                    .recommend("Use a new ClientToken for a new request."))
            }
            Some(used) => {
                let (ids, reply) = (used.answer.clone(), again(&used.answer));
                Ok((Draft::default(), Done { ids, reply }))
            }
            None => {
                let (mut draft, done) = plan(world, context)?;
                let record = ClientToken {
                    tenant: tenant.clone(),
                    action: action.to_owned(),
                    token: token.clone(),
                    fingerprint: fingerprint.clone(),
                    answer: done.ids.clone(),
                    created: context.now,
                };
                draft.put(world.view, &record);
                Ok((draft, done))
            }
        }
    })
}
