//! `bixi instance run`.

use crate::context::Context;
use crate::failure::Failure;
use crate::task::Waiting;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bixi_api::ecs::{EcsClient, EcsClientError, Image, Images, Instances, Parameters, RunAnswer};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// What the instances are to be.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Type, of `bixi type list`
    #[arg(long = "type", value_name = "TYPE")]
    type_id: String,
    /// Image, by id or name
    #[arg(long)]
    image: String,
    /// Name of the instance
    #[arg(long)]
    name: Option<String>,
    /// Name that the system gives itself, and that its segment's DNS answers
    #[arg(long, value_name = "NAME")]
    host_name: Option<String>,
    /// How many instances
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    count: u64,
    /// Size of the system disk in GiB, if not the image's
    #[arg(long, value_name = "GIB")]
    system_disk: Option<u64>,
    /// A data disk of so many GiB; can be given again
    #[arg(long = "disk", value_name = "GIB[:CATEGORY]")]
    disks: Vec<DataDisk>,
    /// File with user data for cloud-init
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// vSwitch, if not the tenant's own
    #[arg(long, value_name = "ID")]
    vswitch: Option<String>,
    /// Security group, if not the tenant's own
    #[arg(long, value_name = "ID")]
    security_group: Option<String>,
    /// Address in the vSwitch
    #[arg(long, value_name = "IPV4")]
    address: Option<Ipv4Addr>,
    /// A tag; can be given again
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    tags: Vec<Tag>,
    /// Refuse to delete the instances later
    #[arg(long)]
    deletion_protection: bool,
    /// A token that makes the request safe to repeat: the same token never makes instances twice
    #[arg(long, value_name = "TOKEN")]
    client_token: Option<String>,
    /// Only say whether it could be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// `GIB` or `GIB:CATEGORY`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DataDisk {
    gib: u64,
    category: Option<String>,
}

impl FromStr for DataDisk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (gib, category) = match text.split_once(':') {
            Some((gib, category)) => (gib, Some(category.to_owned())),
            None => (text, None),
        };
        let gib = gib.parse().map_err(|_| "write its size in GiB, such as 40".to_owned())?;
        Ok(Self { gib, category })
    }
}

/// `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tag {
    key: String,
    value: String,
}

impl FromStr for Tag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        match key {
            "" => Err("write it as KEY=VALUE".to_owned()),
            key => Ok(Self { key: key.to_owned(), value: value.to_owned() }),
        }
    }
}

impl Arguments {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let ecs = context.ecs()?;
        let image = resolve_image(&ecs, &self.image).await?;
        let parameters = self.parameters(image)?;
        let answer = match ecs.call::<RunAnswer>("RunInstances", &parameters).await {
            Err(EcsClientError::Refused(refusal)) if refusal.code == "DryRunOperation" => {
                eprintln!("It could be done; nothing was changed.");
                return Ok(());
            }
            answer => answer?,
        };
        let ids = answer.instance_id_sets.instance_id_set;
        let waited = self.waiting.for_instances(&ecs, &ids).await;
        if waited.is_err() {
            eprintln!("The instances are: {}", ids.join(" "));
        }
        waited?;
        let json =
            serde_json::to_string(&ids).map_err(|e| Failure::system("write JSON", e.into()))?;
        let made = ecs.list::<Instances>(&[("InstanceIds".to_owned(), json)].into()).await?;
        context.output.list(&made)
    }

    fn parameters(&self, image: String) -> Result<Parameters, Failure> {
        let mut parameters = Parameters::new();
        let mut put = |name: &str, value: String| parameters.insert(name.to_owned(), value);
        put("InstanceType", self.type_id.clone());
        put("ImageId", image);
        put("Amount", self.count.to_string());
        if self.count > 1 && self.name.is_some() {
            put("UniqueSuffix", "true".to_owned());
        }
        for (name, value) in [
            ("InstanceName", self.name.clone()),
            ("HostName", self.host_name.clone()),
            ("SystemDisk.Size", self.system_disk.map(|gib| gib.to_string())),
            ("VSwitchId", self.vswitch.clone()),
            ("SecurityGroupId", self.security_group.clone()),
            ("PrivateIpAddress", self.address.map(|address| address.to_string())),
            ("ClientToken", self.client_token.clone()),
            ("DeletionProtection", self.deletion_protection.then(|| "true".to_owned())),
            ("DryRun", self.dry_run.then(|| "true".to_owned())),
        ] {
            if let Some(value) = value {
                put(name, value);
            }
        }
        for (number, disk) in (1..).zip(&self.disks) {
            put(&format!("DataDisk.{number}.Size"), disk.gib.to_string());
            if let Some(category) = &disk.category {
                put(&format!("DataDisk.{number}.Category"), category.clone());
            }
        }
        for (number, tag) in (1..).zip(&self.tags) {
            put(&format!("Tag.{number}.Key"), tag.key.clone());
            put(&format!("Tag.{number}.Value"), tag.value.clone());
        }
        if let Some(file) = &self.user_data {
            let failed = |e| Failure::system(format!("read {}", file.display()), e);
            put("UserData", STANDARD.encode(std::fs::read(file).map_err(failed)?));
        }
        Ok(parameters)
    }
}

/// The id of an image that is called by its id or its name.
async fn resolve_image(ecs: &EcsClient, called: &str) -> Result<String, Failure> {
    if called.starts_with("m-") {
        return Ok(called.to_owned());
    }
    let parameters = [("ImageName".to_owned(), called.to_owned())].into();
    let found: Vec<Image> = ecs.list::<Images>(&parameters).await?;
    match found.as_slice() {
        [] => Err(Failure::NotFound(format!(
            "there is no image called {called}: `bixi image list` shows those there are"
        ))),
        [one] => Ok(one.image_id.clone()),
        _ => Err(Failure::Usage(format!(
            "several images are called {called}: `bixi image list` shows their ids"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn arguments_become_the_parameters_of_ecs() {
        let line = "x --type bixi.tiny --image m-1 --name web --count 2 --disk 40 \
                    --disk 20:cloud_ssd --tag a=b=c --tag d --address 10.0.0.9";
        let arguments = Line::try_parse_from(line.split_whitespace()).unwrap().arguments;
        let got = arguments.parameters("m-1".to_owned()).unwrap();
        for (name, value) in [
            ("InstanceType", "bixi.tiny"),
            ("Amount", "2"),
            ("UniqueSuffix", "true"),
            ("DataDisk.1.Size", "40"),
            ("DataDisk.2.Category", "cloud_ssd"),
            ("Tag.1.Value", "b=c"),
            ("Tag.2.Key", "d"),
            ("PrivateIpAddress", "10.0.0.9"),
        ] {
            assert_eq!(got.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!got.contains_key("DryRun") && !got.contains_key("HostName"));
        assert!("x".parse::<DataDisk>().is_err() && "=x".parse::<Tag>().is_err());
    }
}
