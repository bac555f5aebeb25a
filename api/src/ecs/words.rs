//! What ECS answers: the fields that the command line shows by name, and all others as they came.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One page of a list.
pub trait Page {
    /// The action that answers it.
    const ACTION: &'static str;
    /// Whether it comes in numbered pages; otherwise it comes whole.
    const NUMBERED: bool;
    /// What is in it.
    type Item;

    /// Items of all pages.
    fn total(&self) -> u64;
    /// Items of this one.
    fn items(self) -> Vec<Self::Item>;
}

/// Derives what every answer has, and keeps the fields that have no name here.
macro_rules! words {
    ($($(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* pub $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $type,)*
            /// The other fields.
            #[serde(flatten)]
            pub rest: Map<String, Value>,
        }
    )*};
}

/// Derives a list as ECS wraps it: `{"Outer": {"Inner": […]}, "TotalCount": …}`.
macro_rules! pages {
    ($($(#[$doc:meta])* $page:ident, $list:ident: $action:literal, $numbered:literal, $outer:literal, $inner:literal, $item:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(default)]
        pub struct $page {
            #[serde(rename = "TotalCount")]
            total: u64,
            #[serde(rename = $outer)]
            list: $list,
        }

        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(default)]
        struct $list {
            #[serde(rename = $inner)]
            items: Vec<$item>,
        }

        impl Page for $page {
            const ACTION: &'static str = $action;
            const NUMBERED: bool = $numbered;
            type Item = $item;

            fn total(&self) -> u64 {
                self.total
            }

            fn items(self) -> Vec<$item> {
                self.list.items
            }
        }
    )*};
}

pages! {
    /// A tenant's instances.
    Instances, InstanceList: "DescribeInstances", true, "Instances", "Instance", Instance;
    /// The types of instances.
    InstanceTypes, InstanceTypeList: "DescribeInstanceTypes", false, "InstanceTypes", "InstanceType", InstanceType;
    /// The images that a tenant may use.
    Images, ImageList: "DescribeImages", true, "Images", "Image", Image;
    /// A tenant's tasks.
    Tasks, TaskList: "DescribeTasks", true, "TaskSet", "Task", Task;
}

words! {
    /// An instance.
    pub struct Instance {
        /// Its id.
        pub instance_id: String,
        /// Its name.
        pub instance_name: String,
        /// `Pending`, `Starting`, `Running`, `Stopping`, `Stopped`.
        pub status: String,
        /// Its type.
        pub instance_type: String,
        /// Its image.
        pub image_id: String,
        /// Virtual CPUs.
        pub cpu: u64,
        /// Memory in MiB.
        pub memory: u64,
        /// Its zone.
        pub zone_id: String,
        /// When it was made.
        pub creation_time: String,
        /// Its place in a VPC.
        pub vpc_attributes: VpcAttributes,
    }

    /// An instance's place in a VPC.
    pub struct VpcAttributes {
        /// The VPC.
        pub vpc_id: String,
        /// Its addresses.
        pub private_ip_address: Addresses,
    }

    /// Addresses.
    pub struct Addresses {
        /// Each.
        pub ip_address: Vec<String>,
    }

    /// A type of instances.
    pub struct InstanceType {
        /// Its name.
        pub instance_type_id: String,
        /// Its family.
        pub instance_type_family: String,
        /// Virtual CPUs.
        pub cpu_core_count: u64,
        /// Memory in GiB.
        pub memory_size: f64,
        /// `X86` or `ARM`.
        pub cpu_architecture: String,
        /// What it may receive, in kbit/s.
        pub instance_bandwidth_rx: u64,
        /// What it may receive, in packets per second.
        pub instance_pps_rx: u64,
        /// Its network interfaces.
        pub eni_quantity: u64,
    }

    /// An image.
    pub struct Image {
        /// Its id.
        pub image_id: String,
        /// Its name.
        pub image_name: String,
        /// `Creating`, `Available`.
        pub status: String,
        /// `x86_64`, `arm64`.
        pub architecture: String,
        /// The system's name, for people.
        #[serde(rename = "OSName")]
        pub os_name: String,
        /// Its size in GiB.
        pub size: u64,
        /// `system` or `self`.
        pub image_owner_alias: String,
        /// When it was made.
        pub creation_time: String,
    }

    /// A task.
    pub struct Task {
        /// Its id.
        pub task_id: String,
        /// What it does, such as `StartInstance`.
        pub task_action: String,
        /// `Pending`, `Processing`, `Finished`, `Failed`, `Cancelled`.
        pub task_status: String,
        /// The instance.
        pub resource_id: String,
        /// When it was made.
        pub creation_time: String,
        /// When it ended.
        pub finished_time: String,
    }

    /// A task with its progress.
    pub struct TaskAttribute {
        /// Its id.
        pub task_id: String,
        /// What it does, such as `StartInstance`.
        pub task_action: String,
        /// `Pending`, `Processing`, `Finished`, `Failed`, `Cancelled`.
        pub task_status: String,
        /// How far it is: `40%`.
        pub task_process: String,
        /// When it was made.
        pub creation_time: String,
        /// When it ended.
        pub finished_time: String,
        /// What it works on, and why it failed.
        pub operation_progress_set: OperationProgressSet,
    }

    /// What a task works on.
    pub struct OperationProgressSet {
        /// Each.
        pub operation_progress: Vec<OperationProgress>,
    }

    /// One thing that a task works on.
    pub struct OperationProgress {
        /// `Pending`, `Processing`, `Finished`, `Failed`, `Cancelled`.
        pub operation_status: String,
        /// Why it failed, in a word.
        pub error_code: String,
        /// Why it failed.
        pub error_msg: String,
    }

    /// What `RunInstances` answers.
    pub struct RunAnswer {
        /// The instances.
        pub instance_id_sets: InstanceIdSets,
        /// By which the cloud's log knows the request.
        pub request_id: String,
    }

    /// Ids of instances.
    pub struct InstanceIdSets {
        /// Each.
        pub instance_id_set: Vec<String>,
    }
}

impl Task {
    /// Whether it goes on no more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        ended(&self.task_status)
    }
}

impl TaskAttribute {
    /// Whether it goes on no more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        ended(&self.task_status)
    }

    /// Why it did not bring about what it should; empty where nobody says.
    #[must_use]
    pub fn failure(&self) -> &str {
        let progress = &self.operation_progress_set.operation_progress;
        let told = progress.iter().map(|one| one.error_msg.as_str());
        told.into_iter().find(|text| !text.is_empty()).unwrap_or("")
    }
}

fn ended(status: &str) -> bool {
    !matches!(status, "Pending" | "Processing")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_keeps_what_has_no_name_here() {
        let told = json!({
            "TotalCount": 1,
            "RequestId": "R",
            "Instances": {"Instance": [{
                "InstanceId": "i-1",
                "Status": "Running",
                "HostName": "web",
                "VpcAttributes": {
                    "VSwitchId": "vsw-1",
                    "PrivateIpAddress": {"IpAddress": ["10.0.0.2"]},
                },
            }]},
        });
        let page: Instances = serde_json::from_value(told).unwrap();
        assert_eq!(page.total(), 1);
        let one = page.items().remove(0);
        assert_eq!(one.vpc_attributes.private_ip_address.ip_address, ["10.0.0.2"]);
        let back = serde_json::to_value(&one).unwrap();
        assert_eq!(back["HostName"], "web");
        assert_eq!(back["VpcAttributes"]["VSwitchId"], "vsw-1");
    }

    #[test]
    fn a_task_ends_in_any_status_that_is_not_under_way() {
        let task = |status: &str| Task { task_status: status.to_owned(), ..Task::default() };
        assert!(!task("Pending").has_ended() && !task("Processing").has_ended());
        assert!(task("Finished").has_ended() && task("Cancelled").has_ended());
    }
}
