//! `bixi task`, and the waiting that other commands do: until tasks have ended, which the cloud says when it has seen the
//! effect.

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Shown, age};
use crate::progress::Progress;
use bixi_api::ecs::{EcsClient, Parameters, Task, TaskAttribute, Tasks};
use bixi_api::operator::TaskDescription;
use std::time::{Duration, Instant};

/// How often the cloud is asked, at first and in the end.
const OFTEN: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(2);

/// Long operations.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the tasks, ended ones too for a while
    List {
        /// Those of all tenants (operators)
        #[arg(long)]
        all_tenants: bool,
    },
    /// Show one task
    Show {
        /// Its id
        task: String,
    },
    /// Wait until tasks have ended; fails if one failed
    Wait {
        /// Their ids
        #[arg(required = true)]
        tasks: Vec<String>,
        /// How long, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        timeout: u64,
    },
}

/// Whether to wait for the effect.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Waiting {
    /// Wait until the effect is seen (this is usual)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return when the cloud has accepted the request
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

impl Waiting {
    /// What was brought about, in words that are true: without waiting it was only asked for.
    pub fn said(&self, done: &str) -> String {
        if self.waits() { done.to_owned() } else { "Accepted".to_owned() }
    }

    fn waits(&self) -> bool {
        self.wait || !self.no_wait
    }

    /// Waits, if that is wanted, for the newest task of each instance.
    pub async fn for_instances(&self, ecs: &EcsClient, ids: &[String]) -> Result<(), Failure> {
        if !self.waits() {
            return Ok(());
        }
        let mut tasks = Vec::new();
        // The order of a list is that of creation.
        for id in ids {
            let parameters = [("ResourceIds.1".to_owned(), id.clone())].into();
            let of_one = ecs.list::<Tasks>(&parameters).await?;
            tasks.extend(of_one.into_iter().next_back().map(|task| task.task_id));
        }
        wait(ecs, tasks, Duration::from_secs(self.timeout)).await
    }
}

impl Command {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List { all_tenants: true } => {
                let tasks: Vec<TaskDescription> = context.operator()?.get("/v1/tasks").await?;
                context.output.list(&tasks)
            }
            Self::List { all_tenants: false } => {
                context.output.list(&context.ecs()?.list::<Tasks>(&Parameters::new()).await?)
            }
            Self::Show { task } => context.output.one(&attribute(&context.ecs()?, &task).await?),
            Self::Wait { tasks, timeout } => {
                wait(&context.ecs()?, tasks, Duration::from_secs(timeout)).await
            }
        }
    }
}

async fn attribute(ecs: &EcsClient, id: &str) -> Result<TaskAttribute, Failure> {
    let parameters = [("TaskId".to_owned(), id.to_owned())].into();
    Ok(ecs.call("DescribeTaskAttribute", &parameters).await?)
}

/// Waits until all tasks have ended; the first that failed is the failure, after all have ended.
async fn wait(ecs: &EcsClient, mut ids: Vec<String>, timeout: Duration) -> Result<(), Failure> {
    let (mut progress, begun) = (Progress::new(), Instant::now());
    let (mut pause, mut failed, all) = (OFTEN, None, ids.len());
    while !ids.is_empty() {
        let (mut left, mut percents) = (Vec::new(), (all - ids.len()) * 100);
        for id in ids {
            let task = attribute(ecs, &id).await?;
            percents += percent(&task);
            if all == 1 {
                progress.say(&under_way(&task));
            }
            match task.has_ended() {
                false => left.push(id),
                true if task.task_status == "Finished" => {}
                true => failed = failed.or(Some(task)),
            }
        }
        ids = left;
        if all > 1 {
            progress.say(&format!(
                "{} of {all} tasks have ended: {}%",
                all - ids.len(),
                percents / all
            ));
        }
        if let (Some(id), true) = (ids.first(), begun.elapsed() >= timeout) {
            return Err(Failure::Timeout(format!(
                "task {id} has not ended within {} s and goes on: `bixi task wait {id}`",
                timeout.as_secs()
            )));
        }
        if !ids.is_empty() {
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(SELDOM);
        }
    }
    drop(progress);
    failed.map_or(Ok(()), |task| Err(Failure::Failed(why(&task))))
}

fn under_way(task: &TaskAttribute) -> String {
    let (action, id, status) = (&task.task_action, &task.task_id, &task.task_status);
    format!("{action} {id}: {status} {}", task.task_process)
}

/// How far a task is; one of which nothing can be read has not begun.
fn percent(task: &TaskAttribute) -> usize {
    let told = task.task_process.trim_end_matches('%').parse::<usize>();
    told.unwrap_or(0).min(100)
}

fn why(task: &TaskAttribute) -> String {
    let (action, id, status) = (&task.task_action, &task.task_id, task.task_status.to_lowercase());
    match task.failure() {
        "" => format!("{action}: task {id} has {status}"),
        told => format!("{action}: task {id} has {status}: {told}"),
    }
}

impl Shown for Task {
    const HEAD: &'static [&'static str] =
        &["ID", "ACTION", "INSTANCE", "STATUS", "CREATED", "FINISHED"];

    fn row(&self) -> Vec<String> {
        vec![
            self.task_id.clone(),
            self.task_action.clone(),
            self.resource_id.clone(),
            self.task_status.clone(),
            self.creation_time.clone(),
            self.finished_time.clone(),
        ]
    }

    fn name(&self) -> String {
        self.task_id.clone()
    }
}

impl Shown for TaskAttribute {
    const HEAD: &'static [&'static str] =
        &["ID", "ACTION", "STATUS", "PROGRESS", "CREATED", "FINISHED"];

    fn row(&self) -> Vec<String> {
        vec![
            self.task_id.clone(),
            self.task_action.clone(),
            self.task_status.clone(),
            self.task_process.clone(),
            self.creation_time.clone(),
            self.finished_time.clone(),
        ]
    }

    fn name(&self) -> String {
        self.task_id.clone()
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        match self.failure() {
            "" => Vec::new(),
            told => vec![("FAILURE", told.to_owned())],
        }
    }
}

impl Shown for TaskDescription {
    const HEAD: &'static [&'static str] =
        &["ID", "KIND", "INSTANCE", "TENANT", "STEP", "PROGRESS", "AGE", "FAILURE"];

    fn row(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.kind.clone(),
            self.instance.clone(),
            self.tenant.clone(),
            self.step.clone(),
            format!("{}%", self.progress),
            age(self.created),
            self.failure.clone().unwrap_or_default(),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_task_says_why() {
        let mut task = TaskAttribute {
            task_id: "t-1".to_owned(),
            task_action: "StartInstance".to_owned(),
            task_status: "Failed".to_owned(),
            ..TaskAttribute::default()
        };
        assert_eq!(why(&task), "StartInstance: task t-1 has failed");
        task.operation_progress_set.operation_progress.push(bixi_api::ecs::OperationProgress {
            error_msg: "no memory".to_owned(),
            ..Default::default()
        });
        assert_eq!(why(&task), "StartInstance: task t-1 has failed: no memory");
        for (told, is) in [("", 0), ("37%", 37), ("100%", 100), ("1000%", 100), ("x", 0)] {
            task.task_process = told.to_owned();
            assert_eq!(percent(&task), is);
        }
    }
}
