//! What tenants do.

use crate::rig::Cloud;
use crate::server::Server;
use bixi_image::bundle::{Boot, Bundle, Manifest};

/// A cloud with one image and one server.
fn ready(lazy: bool) -> (Cloud, Server) {
    let cloud = Cloud::start();
    let folder = cloud.user.home.path().join("bundle");
    let (kernel, initrd) = ("vmlinuz".to_owned(), "initrd".to_owned());
    let boot = Boot::Direct { kernel, initrd, command_line: "quiet".to_owned() };
    // The simulated server runs nothing: any bytes will do.
    let file = cloud.file("file", &[7; 4096]);
    let files = [("vmlinuz", file.as_path()), ("initrd", file.as_path())];
    Bundle::write(&folder, Manifest::new("seven", "a system", boot), &files).unwrap();
    cloud.bixi(&format!("image import {} --name seven", folder.display())).good();
    let server = Server::join(&cloud.bixi("server token").good(), lazy);
    cloud.until("the server is alive", |cloud| cloud.bixi("server list").out.contains("alive"));
    assert!(cloud.bixi("server show s1").good().contains("heard"));
    (cloud, server)
}

pub fn life() {
    let (cloud, _server) = ready(false);
    assert!(cloud.bixi("type list -o name").good().contains("bixi.tiny\n"));
    let run = "instance run --type bixi.tiny --image seven --name web --tag a=b";
    let dry = cloud.bixi(&format!("{run} --dry-run"));
    assert!(dry.err.contains("nothing was changed"), "{dry:#?}");
    dry.good();
    assert_eq!(cloud.bixi("instance list -o name").good(), "");

    let made = cloud.bixi(&format!("{run} -o json"));
    assert!(made.err.contains("RunInstance"), "no progress: {made:#?}");
    let made = made.json();
    assert_eq!(made[0]["Status"], "Running", "{made:#}");
    assert_eq!(made[0]["Tags"]["Tag"][0]["TagKey"], "a", "a field without a name is lost");
    let id = made[0]["InstanceId"].as_str().unwrap().to_owned();
    let list = cloud.bixi("instance list").good();
    assert!(list.contains(&id) && list.contains("Running") && list.starts_with("ID"), "{list}");
    assert!(!list.contains('\u{1b}'), "colours without a terminal");
    assert!(cloud.bixi("instance list --all-tenants").good().contains(&id));

    cloud.bixi("instance stop web").good();
    assert_eq!(cloud.bixi("instance show web -o json").json()["Status"], "Stopped");
    cloud.bixi(&format!("instance stop {id}")).bad(1, "request: ");
    cloud.bixi(&format!("instance start {id}")).good();
    cloud.bixi("instance reboot web --no-wait").good();
    let tasks = cloud.bixi("task list -o name").good();
    let newest = tasks.lines().last().unwrap();
    cloud.bixi(&format!("task wait {newest}")).good();
    assert!(cloud.bixi(&format!("task show {newest}")).good().contains("Finished"));
    cloud.bixi("instance delete web").bad(1, "code: IncorrectInstanceStatus");
    cloud.bixi("instance delete web --force").good();

    cloud.bixi(&format!("instance show {id}")).bad(3, "no instance");
    cloud.bixi("instance start i-none").bad(3, "code: InvalidInstanceId.NotFound");
    cloud.bixi("task show t-none").bad(3, "t-none");
    let wrong = "instance run --type no.such --image seven";
    cloud.bixi(wrong).bad(1, "`bixi type list`");
    cloud.bixi("instance run --type bixi.tiny --image none").bad(3, "no image called none");
    assert!(cloud.bixi("event list").good().contains(&id));
    follow(&cloud, &id);

    let mut command = cloud.user.command("instance list");
    command.env("BIXI_ACCESS_KEY_SECRET", "wrong");
    cloud.user.run(&mut command).bad(1, "code: SignatureDoesNotMatch");
}

/// Events that were and events that come are printed as they come.
fn follow(cloud: &Cloud, id: &str) {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let mut child = cloud.user.command("event follow").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(id)));
    child.kill().unwrap();
    child.wait().unwrap();
}

pub fn late() {
    let (cloud, _server) = ready(true);
    let run = cloud.bixi("instance run --type bixi.tiny --image seven --timeout 0");
    assert!(run.err.contains("The instances are: i-"), "{run:#?}");
    run.bad(4, "bixi task wait");
    let listed = cloud.bixi("instance list -o json").json();
    assert_ne!(listed[0]["Status"], "Running", "{listed:#}");
    let id = cloud.bixi("task list -o name").good();
    cloud.bixi(&format!("task wait --timeout 0 {}", id.trim())).bad(4, "has not ended");
}
