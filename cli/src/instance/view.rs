//! `bixi instance list` and `show`.

use super::resolve;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Shown, age};
use bixi_api::ecs::{Instance, Instances, Parameters};
use bixi_api::operator::InstanceDescription;
use serde_json::Value;

#[derive(Debug, clap::Args)]
pub struct List {
    /// Only those of this name; `*` stands for anything
    #[arg(long)]
    name: Option<String>,
    /// Only those in this status: Pending, Starting, Running, Stopping, Stopped
    #[arg(long)]
    status: Option<String>,
    /// Those of all tenants, with their servers (operators)
    #[arg(long, conflicts_with_all = ["name", "status"])]
    all_tenants: bool,
}

impl List {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        if self.all_tenants {
            let all: Vec<InstanceDescription> = context.operator()?.get("/v1/instances").await?;
            return context.output.list(&all);
        }
        let mut parameters = Parameters::new();
        parameters.extend(self.name.map(|name| ("InstanceName".to_owned(), name)));
        parameters.extend(self.status.map(|status| ("Status".to_owned(), status)));
        context.output.list(&context.ecs()?.list::<Instances>(&parameters).await?)
    }
}

/// Shows one instance.
pub async fn show(context: &Context, called: &str) -> Result<(), Failure> {
    let ecs = context.ecs()?;
    let id = resolve(&ecs, called).await?;
    let json = Value::from(vec![id.clone()]).to_string();
    let found = ecs.list::<Instances>(&[("InstanceIds".to_owned(), json)].into()).await?;
    match found.first() {
        Some(one) => context.output.one(one),
        None => Err(Failure::NotFound(format!(
            "there is no instance {id}: `bixi instance list` shows those there are"
        ))),
    }
}

impl Shown for Instance {
    const HEAD: &'static [&'static str] =
        &["ID", "NAME", "STATUS", "TYPE", "ADDRESS", "IMAGE", "CREATED"];

    fn row(&self) -> Vec<String> {
        vec![
            self.instance_id.clone(),
            self.instance_name.clone(),
            self.status.clone(),
            self.instance_type.clone(),
            self.vpc_attributes.private_ip_address.ip_address.join(" "),
            self.image_id.clone(),
            self.creation_time.clone(),
        ]
    }

    fn name(&self) -> String {
        self.instance_id.clone()
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let text =
            |name: &str| self.rest.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        vec![
            ("VCPU", self.cpu.to_string()),
            ("MEMORY", format!("{} MiB", self.memory)),
            ("ZONE", self.zone_id.clone()),
            ("VPC", self.vpc_attributes.vpc_id.clone()),
            ("HOST NAME", text("HostName")),
            ("SYSTEM", text("OSName")),
            ("STARTED", text("StartTime")),
            ("DESCRIPTION", text("Description")),
        ]
    }
}

impl Shown for InstanceDescription {
    const HEAD: &'static [&'static str] =
        &["ID", "NAME", "TENANT", "STATUS", "SERVER", "EPOCH", "TYPE", "ADDRESS", "AGE", "ERROR"];

    fn row(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.name.clone(),
            self.tenant.clone(),
            self.status.clone(),
            self.server.clone(),
            self.epoch.to_string(),
            self.instance_type.clone(),
            self.addresses.join(" "),
            age(self.created),
            self.error.clone().unwrap_or_default(),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}
