//! Alibaba's own clients and libcloud, unmodified from PyPI, against the whole cloud over HTTP and HTTPS, with a
//! simulated server. `clients.py` says what they do.

use crate::model::{AccessKey, Draft, Quota};
use crate::plan::simulation::{SimulatedAgent, image};
use crate::plan::{Refusal, tenancy};
use crate::serve::{Cloud, Settings};
use crate::service::{Control, Place};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

const PACKAGES: [&str; 3] = [
    "aliyun-python-sdk-ecs==4.24.83",
    "alibabacloud_ecs20140526==7.11.8",
    "apache-libcloud==3.9.1",
];
const REGION: &str = "bixi-1";
const SERVER: &str = "s-00000000000000000000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: installs clients from PyPI"]
async fn unmodified_clients_run_list_stop_and_delete() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return println!("SKIPPED: {why}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let listen = ([127, 0, 0, 1], 0).into();
    let settings = Settings {
        state: folder.path().to_owned(),
        listen,
        listen_http: Some(listen),
        names: Vec::new(),
        place: Place { region: REGION.to_owned(), zone: "bixi-1a".to_owned() },
        lives: crate::tls::Lives::default(),
    };
    let cloud = Cloud::open(&settings).await.unwrap();
    let (control, https) = (cloud.control.clone(), cloud.address.to_string());
    let http = cloud.address_http.unwrap().to_string();
    let authority = cloud.authority.path().to_owned();
    let running = tokio::spawn(cloud.run());
    let key = found(&control).await;
    let server = tokio::spawn(simulate(control));
    let client = tokio::task::spawn_blocking(move || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ecs/clients.py");
        let mut command = Command::new(python);
        command.arg(script).args([http, https]).arg(authority);
        command.args([&key.id, &key.secret, REGION, &image().id]).output().unwrap()
    });
    let output = client.await.unwrap();
    println!("{}", text(&output));
    assert!(output.status.success());
    server.abort();
    running.abort();
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{err}")
}

/// A Python with the clients, made once for all runs; otherwise why there is none.
fn python() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ecs-clients");
    let (python, done) = (folder.join("bin/python"), folder.join("installed"));
    let wanted = PACKAGES.join("\n");
    if std::fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(text(&output)),
        Err(error) => Err(error.to_string()),
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))
        .map_err(|why| format!("no Python environment (Debian: python3-venv): {why}"))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))
        .map_err(|why| format!("the clients cannot be had from PyPI: {why}"))?;
    std::fs::write(&done, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}

/// A tenant with a key, an image, and a server that has joined.
async fn found(control: &Control) -> AccessKey {
    let tenant = control.change(|view, _, context| {
        tenancy::new_tenant(view, "clients", Quota::default(), "bixi-1a", context)
    });
    let tenant = tenant.await.unwrap().id;
    let key = control.change(|view, _, context| tenancy::new_key(view, &tenant, context));
    let key = key.await.unwrap();
    let image = control.change(|_, _, context| {
        let mut draft = Draft::default();
        draft.create(&image());
        let (ticket, _) = tenancy::new_ticket("secret".to_owned(), context);
        draft.join(ticket);
        Ok::<_, Refusal>((draft, ()))
    });
    image.await.unwrap();
    let join = control.change(|view, _, context| {
        let draft = tenancy::join(view, "secret", SERVER, "one", String::new(), context)?;
        Ok::<_, Refusal>((draft, ()))
    });
    join.await.unwrap();
    key
}

/// A server that does what it is told, and tells it.
async fn simulate(control: Arc<Control>) {
    let (mut agent, mut revision) = (SimulatedAgent::new(SERVER), 0);
    loop {
        agent.turn();
        control.report(SERVER, agent.report()).await.unwrap();
        let wait = Duration::from_millis(20);
        if let Some(desired) = control.desired_after(SERVER, revision, wait).await {
            revision = desired.revision;
            agent.take(desired);
        }
    }
}
