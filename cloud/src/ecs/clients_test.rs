//! Alibaba's own clients and libcloud, unmodified, against the API.

use super::harness::Served;
use crate::model::Quota;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PACKAGES: [&str; 3] =
    ["aliyun-python-sdk-ecs==4.24.83", "alibabacloud_ecs20140526==7.11.8", "apache-libcloud==3.9.1"];

#[tokio::test]
#[ignore = "installs packages from PyPI"]
async fn unmodified_clients_run_list_stop_and_delete() {
    let python = std::env::var_os("BIXI_CLIENTS_PYTHON").map(PathBuf::from).unwrap();
    let served = Served::new().await;
    let key = served.cloud.tenant("clients", Quota::default()).await;
    let cloud = served.cloud.clone();
    tokio::spawn(async move {
        loop {
            cloud.turn().await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    });
    let image = crate::plan::simulation::image().id;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ecs/clients.py");
    let mut command = tokio::task::spawn_blocking(move || {
        Command::new(python).arg(script).args([&served.address.to_string(), "-", "-", &key.id, &key.secret, "bixi-1", &image]).status()
    });
    assert!((&mut command).await.unwrap().unwrap().success());
}
