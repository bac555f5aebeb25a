//! `bixi tenant`.

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Shown, age};
use bixi_api::operator::{TenantCreate, TenantDescription};
use hyper::Method;

/// Tenants of the cloud.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Create a tenant, with a network of its own
    Create {
        /// Its name: 1 to 63 letters, digits and `-`
        name: String,
    },
    /// List the tenants
    List,
}

impl Command {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let operator = context.operator()?;
        match self {
            Self::Create { name } => {
                let create = TenantCreate { name, quota: None };
                let made: TenantDescription =
                    operator.ask(Method::POST, "/v1/tenants", &create).await?;
                context.output.one(&made)
            }
            Self::List => {
                let tenants: Vec<TenantDescription> = operator.get("/v1/tenants").await?;
                context.output.list(&tenants)
            }
        }
    }
}

impl Shown for TenantDescription {
    const HEAD: &'static [&'static str] =
        &["ID", "NAME", "INSTANCES", "VCPU", "MEMORY", "DISKS", "AGE"];

    fn row(&self) -> Vec<String> {
        let (used, quota) = (&self.used, &self.quota);
        vec![
            self.id.clone(),
            self.name.clone(),
            format!("{}/{}", used.instances, quota.instances),
            format!("{}/{}", used.vcpus, quota.vcpus),
            format!("{}/{} MiB", used.memory_mib, quota.memory_mib),
            format!("{}/{} GiB", used.disk_gib, quota.disk_gib),
            age(self.created),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("VPC", self.default_vpc.clone()),
            ("VSWITCH", self.default_vswitch.clone()),
            ("SECURITY GROUP", self.default_security_group.clone()),
        ]
    }
}
