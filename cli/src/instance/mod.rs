//! `bixi instance`.

mod console;
mod power;
mod run;
mod view;

use crate::context::Context;
use crate::failure::Failure;
use bixi_api::ecs::{EcsClient, Instances, Parameters};

/// Virtual machines.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make instances and start them
    Run(Box<run::Arguments>),
    /// List the instances
    List(view::List),
    /// Show one instance
    Show {
        /// Its id or name
        instance: String,
    },
    /// Start stopped instances
    Start(power::Start),
    /// Stop running instances
    Stop(power::Stop),
    /// Restart the systems of running instances
    Reboot(power::Stop),
    /// Delete instances, with their disks
    Delete(power::Delete),
    /// Speak with an instance by its serial port; `Ctrl-]` leaves (operators)
    Console {
        /// Its id
        instance: String,
    },
}

impl Command {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Run(arguments) => arguments.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Show { instance } => view::show(context, &instance).await,
            Self::Start(start) => start.run(context).await,
            Self::Stop(stop) => stop.run(context, "StopInstance", "Stopped").await,
            Self::Reboot(stop) => stop.run(context, "RebootInstance", "Restarted").await,
            Self::Delete(delete) => delete.run(context).await,
            Self::Console { instance } => console::run(context, &instance).await,
        }
    }
}

/// The id of an instance that is called by its id or its name.
async fn resolve(ecs: &EcsClient, called: &str) -> Result<String, Failure> {
    if called.starts_with("i-") {
        return Ok(called.to_owned());
    }
    if called.is_empty() || called.contains('*') {
        return Err(Failure::Usage(format!("{called:?} is neither an id nor a name")));
    }
    let parameters: Parameters = [("InstanceName".to_owned(), called.to_owned())].into();
    let mut found = ecs.list::<Instances>(&parameters).await?;
    match found.len() {
        0 => Err(Failure::NotFound(format!(
            "there is no instance called {called}: `bixi instance list` shows those there are"
        ))),
        1 => Ok(found.remove(0).instance_id),
        _ => {
            let ids: Vec<String> = found.into_iter().map(|one| one.instance_id).collect();
            let ids = ids.join(", ");
            Err(Failure::Usage(format!("several instances are called {called}: say one of {ids}")))
        }
    }
}
