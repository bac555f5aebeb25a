//! `bixi server`.

mod join;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Shown, age};
use bixi_api::operator::{JoinTokenDescription, ServerDescription};
use hyper::Method;

/// Servers of the cloud, and tokens by which new ones join.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the servers
    List,
    /// Show one server
    Show {
        /// Its id or name
        server: String,
    },
    /// Make a token by which one server can join
    Token,
    /// Make this machine a server of a cloud, and let its agent run as a service
    Join(Box<join::Join>),
}

impl Command {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List => {
                let servers: Vec<ServerDescription> =
                    context.operator()?.get("/v1/servers").await?;
                context.output.list(&servers)
            }
            Self::Show { server } => {
                let path = format!("/v1/servers/{}", crate::context::segment(&server)?);
                context.output.one::<ServerDescription>(&context.operator()?.get(&path).await?)
            }
            Self::Token => {
                let operator = context.operator()?;
                let made: JoinTokenDescription =
                    operator.ask(Method::POST, "/v1/join-tokens", &()).await?;
                eprintln!("On the new server: bixi server join TOKEN");
                context.output.value(&made, &made.token, &made.token)
            }
            Self::Join(join) => join.run().await,
        }
    }
}

impl Shown for ServerDescription {
    const HEAD: &'static [&'static str] =
        &["ID", "NAME", "STATUS", "INSTANCES", "VCPU", "MEMORY", "RELEASE", "JOINED"];

    fn row(&self) -> Vec<String> {
        let status = match (self.alive, self.schedulable) {
            (false, _) => "away",
            (true, true) => "alive",
            (true, false) => "closed",
        };
        vec![
            self.id.clone(),
            self.name.clone(),
            status.to_owned(),
            self.instances.to_string(),
            format!("{}/{}", self.used_vcpus, self.vcpus),
            format!("{}/{} MiB", self.used_memory_mib, self.memory_mib),
            self.release.clone(),
            age(self.joined),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = Vec::new();
        let architecture = self.inventory.as_ref().map(|inventory| &inventory.architecture);
        details.extend(architecture.map(|name| ("ARCHITECTURE", name.clone())));
        details.extend(self.heard.map(|heard| ("HEARD", format!("{heard} ms ago"))));
        details.extend(self.refused.clone().map(|why| ("REFUSES", why)));
        details
    }
}
