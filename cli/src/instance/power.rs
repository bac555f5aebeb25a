//! `bixi instance start`, `stop`, `reboot` and `delete`.

use super::resolve;
use crate::context::Context;
use crate::failure::Failure;
use crate::task::Waiting;
use bixi_api::ecs::{EcsClientError, Nothing, Parameters};

#[derive(Debug, clap::Args)]
pub struct Start {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
pub struct Stop {
    /// Take the power away at once, without asking the system
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
pub struct Delete {
    /// Delete running instances too: they lose their power at once
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    which: Which,
}

/// Which instances, and how.
#[derive(Debug, clap::Args)]
struct Which {
    /// The instances, by id or name
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
    /// Only say whether it could be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
}

impl Start {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        self.which.ask(context, "StartInstance", Parameters::new(), "Running").await
    }
}

impl Stop {
    /// Stops or reboots.
    pub async fn run(self, context: &Context, action: &str, done: &str) -> Result<(), Failure> {
        let force = [("ForceStop".to_owned(), self.force.to_string())].into();
        self.which.ask(context, action, force, done).await
    }
}

impl Delete {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let force = [("Force".to_owned(), self.force.to_string())].into();
        self.which.ask(context, "DeleteInstance", force, "Deleted").await
    }
}

impl Which {
    /// Asks for each instance; what was asked for before one is refused is waited for too.
    async fn ask(
        self,
        context: &Context,
        action: &str,
        mut parameters: Parameters,
        done: &str,
    ) -> Result<(), Failure> {
        let ecs = context.ecs()?;
        let (mut asked, mut refused) = (Vec::new(), None);
        if self.dry_run {
            parameters.insert("DryRun".to_owned(), "true".to_owned());
        }
        for called in &self.instances {
            let id = resolve(&ecs, called).await?;
            parameters.insert("InstanceId".to_owned(), id.clone());
            match ecs.call::<Nothing>(action, &parameters).await {
                Ok(_) => asked.push(id),
                Err(EcsClientError::Refused(refusal)) if refusal.code == "DryRunOperation" => {
                    eprintln!("{id}: it could be done; nothing was changed.");
                }
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let waited = self.waiting.for_instances(&ecs, &asked).await;
        refused.map_or(Ok(()), |refused| Err(Failure::from(refused)))?;
        waited?;
        if !asked.is_empty() {
            eprintln!("{}: {}", self.waiting.said(done), asked.join(" "));
        }
        Ok(())
    }
}
