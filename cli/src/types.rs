//! `bixi type`.

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Shown;
use bixi_api::ecs::{InstanceType, InstanceTypes, Parameters};

/// Types of instances.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the types of instances
    List {
        /// Only this family
        #[arg(long, value_name = "NAME")]
        family: Option<String>,
    },
}

impl Command {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let Self::List { family } = self;
        let mut parameters = Parameters::new();
        parameters.extend(family.map(|family| ("InstanceTypeFamily".to_owned(), family)));
        context.output.list(&context.ecs()?.list::<InstanceTypes>(&parameters).await?)
    }
}

impl Shown for InstanceType {
    const HEAD: &'static [&'static str] =
        &["TYPE", "FAMILY", "ARCH", "VCPU", "MEMORY", "NETWORK", "PACKETS", "NICS"];

    fn row(&self) -> Vec<String> {
        vec![
            self.instance_type_id.clone(),
            self.instance_type_family.clone(),
            self.cpu_architecture.clone(),
            self.cpu_core_count.to_string(),
            format!("{} GiB", self.memory_size),
            format!("{} Gbit/s", self.instance_bandwidth_rx as f64 / 1e6),
            format!("{}/s", self.instance_pps_rx),
            self.eni_quantity.to_string(),
        ]
    }

    fn name(&self) -> String {
        self.instance_type_id.clone()
    }
}
