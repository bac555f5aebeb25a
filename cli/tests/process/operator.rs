//! What operators do.

use crate::rig::Cloud;
use bixi_api::agent::JoinToken;

pub fn operator() {
    let cloud = Cloud::start();
    assert_eq!(cloud.bixi("tenant list -o name").good(), "default\n");
    let made = cloud.bixi("tenant create acme -o json").json();
    assert_eq!(made["name"], "acme");
    cloud.bixi("tenant create acme").bad(1, "code: Exists");

    let shown = cloud.bixi("key create acme -o json").json();
    assert!(shown["secret"].as_str().unwrap().len() > 16, "{shown}");
    let saved = cloud.bixi("key create acme --save acme");
    let secret = std::fs::read_to_string(cloud.user.profiles()).unwrap();
    assert!(
        secret.contains("\"acme\"") && !saved.out.to_lowercase().contains("secret"),
        "{saved:#?}"
    );
    saved.good();
    let keys = cloud.bixi("key list acme -o json").json();
    assert_eq!(keys.as_array().unwrap().len(), 2);
    assert!(keys[0]["secret"].is_null());
    cloud.bixi("key create nobody").bad(3, "nobody");
    // The tenant's own profile is no operator's.
    cloud.bixi("--profile acme server list").bad(1, "operator's token");

    let token = cloud.bixi("server token").good();
    token.parse::<JoinToken>().unwrap();
    assert_eq!(cloud.bixi("server list -o name").good(), "");
    cloud.bixi("server show x").bad(3, "x");
    cloud.bixi("server show ../tenants").bad(3, "no id and no name");

    let disk = cloud.file("disk.raw", &vec![7; 3 << 20]);
    let image = cloud.bixi(&format!("image import {} --name seven -o json", disk.display())).json();
    assert_eq!(image["available"], true, "{image}");
    assert_eq!(image["files"][0]["size"], 3 << 20);
    let gzip = cloud.file("disk.gz", b"\x1f\x8b..");
    cloud.bixi(&format!("image import {}", gzip.display())).bad(1, "unpack it first");
    cloud.bixi(&format!("image import {} --name seven", disk.display())).bad(1, "seven");
    assert!(cloud.bixi("image list --all-tenants").good().contains("Available"));
    assert!(cloud.bixi("image list -o json").json()[0]["ImageName"] == "seven");
    cloud.bixi("event list").good();
    assert_eq!(cloud.bixi("task list --all-tenants -o json").json(), serde_json::json!([]));
}
