//! Calls over HTTP against the real store and plans.

use super::harness::{REGION, Served};
use crate::model::{AccessKey, Quota};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn served() -> (Served, AccessKey) {
    let served = Served::new().await;
    let key = served.cloud.tenant("one", Quota::default()).await;
    (served, key)
}

fn image() -> String {
    crate::plan::simulation::image().id
}

async fn run(served: &Served, key: &AccessKey, more: &[(&str, &str)]) -> Result<String, String> {
    let image = image();
    let mut parameters = vec![("ImageId", image.as_str()), ("InstanceType", "bixi.tiny")];
    parameters.extend(more);
    let reply = served.call(key, "RunInstances", &parameters).await?;
    Ok(reply["InstanceIdSets"]["InstanceIdSet"][0].as_str().unwrap().to_owned())
}

fn ids(reply: &Value) -> Vec<String> {
    let items = reply["Instances"]["Instance"].as_array().unwrap();
    items.iter().map(|item| item["InstanceId"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_instance_lives_from_run_to_delete() {
    let (served, key) = served().await;
    let id =
        run(&served, &key, &[("InstanceName", "web"), ("UserData", "aGVsbG8=")]).await.unwrap();
    served.until(&key, &id, Some("Running")).await;
    let one = [("InstanceId", id.as_str())];
    assert_eq!(
        served.call(&key, "StartInstance", &one).await.unwrap_err(),
        "403 IncorrectInstanceStatus"
    );
    assert_eq!(
        served.call(&key, "DeleteInstance", &one).await.unwrap_err(),
        "403 IncorrectInstanceStatus"
    );
    served.call(&key, "StopInstance", &one).await.unwrap();
    served.until(&key, &id, Some("Stopped")).await;
    served.call(&key, "StartInstance", &one).await.unwrap();
    served.until(&key, &id, Some("Running")).await;
    served.call(&key, "RebootInstance", &one).await.unwrap();
    served.cloud.turn().await;
    served.until(&key, &id, Some("Running")).await;
    let many = [("InstanceId.1", id.as_str())];
    let reply = served.call(&key, "StopInstances", &many).await.unwrap();
    assert_eq!(reply["InstanceResponses"]["InstanceResponse"][0]["PreviousStatus"], "Running");
    served.until(&key, &id, Some("Stopped")).await;
    served.call(&key, "DeleteInstances", &many).await.unwrap();
    served.until(&key, &id, None).await;
    let tasks = served.call(&key, "DescribeTasks", &[("ResourceIds.1", &id)]).await.unwrap();
    assert_eq!(tasks["TotalCount"], 6);
    let task = tasks["TaskSet"]["Task"][0]["TaskId"].as_str().unwrap();
    let attribute = served.call(&key, "DescribeTaskAttribute", &[("TaskId", task)]).await.unwrap();
    assert_eq!(
        (&attribute["TaskStatus"], &attribute["TaskProcess"]),
        (&"Finished".into(), &"100%".into())
    );
    assert_eq!(
        served.call(&key, "CancelTask", &[("TaskId", task)]).await.unwrap_err(),
        "403 OperationConflict"
    );
}

#[tokio::test]
async fn a_task_gets_on_and_never_back() {
    let (served, key) = served().await;
    let id = run(&served, &key, &[]).await.unwrap();
    let tasks = served.call(&key, "DescribeTasks", &[("ResourceIds.1", &id)]).await.unwrap();
    let task = tasks["TaskSet"]["Task"][0]["TaskId"].as_str().unwrap().to_owned();
    let mut seen = Vec::new();
    loop {
        let told = served.call(&key, "DescribeTaskAttribute", &[("TaskId", &task)]).await.unwrap();
        let percent = told["TaskProcess"].as_str().unwrap().strip_suffix('%').unwrap();
        seen.push(percent.parse::<u8>().unwrap());
        if told["TaskStatus"] == "Finished" {
            break;
        }
        assert!(seen.len() < 50, "{seen:?}");
        served.cloud.turn().await;
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert_eq!((seen[0], seen.last()), (0, Some(&100)));
    seen.dedup();
    assert!(seen.len() >= 4 && !seen[..seen.len() - 1].contains(&100), "{seen:?}");
}

#[tokio::test]
async fn what_is_there_is_described() {
    let (served, key) = served().await;
    let id = run(
        &served,
        &key,
        &[
            ("Tag.1.Key", "a"),
            ("Tag.1.Value", "b"),
            ("DataDisk.1.Size", "2"),
            ("UserData", "aGVsbG8="),
        ],
    )
    .await
    .unwrap();
    let reply = served.call(&key, "DescribeInstances", &[("Tag.1.Key", "a")]).await.unwrap();
    let instance = &reply["Instances"]["Instance"][0];
    assert_eq!((&instance["Cpu"], &instance["Memory"]), (&1.into(), &256.into()));
    let address = instance["VpcAttributes"]["PrivateIpAddress"]["IpAddress"][0].as_str().unwrap();
    assert!(address.starts_with("172.16."));
    let by_address = format!("[{address:?}]");
    for (filter, there) in [
        (("PrivateIpAddresses", by_address.as_str()), true),
        (("InstanceName", "i-*"), true),
        (("InstanceName", "x*"), false),
        (("Status", "Stopped"), false),
        (("InstanceType", "bixi.tiny"), true),
        (("Tag.1.Key", "other"), false),
    ] {
        let reply = served.call(&key, "DescribeInstances", &[filter]).await.unwrap();
        assert_eq!(ids(&reply) == [id.clone()], there, "{filter:?}");
    }
    let disks = served.call(&key, "DescribeDisks", &[("InstanceId", &id)]).await.unwrap();
    assert_eq!(disks["TotalCount"], 2);
    let one = [("InstanceId", id.as_str())];
    let data = served.call(&key, "DescribeUserData", &one).await.unwrap();
    assert_eq!(data["UserData"], "aGVsbG8=");
    served.call(&key, "DescribeInstanceAttribute", &one).await.unwrap();
    for (action, list, item) in [
        ("DescribeInstanceStatus", "InstanceStatuses", "InstanceStatus"),
        ("DescribeImages", "Images", "Image"),
        ("DescribeSecurityGroups", "SecurityGroups", "SecurityGroup"),
        ("DescribeVpcs", "Vpcs", "Vpc"),
        ("DescribeVSwitches", "VSwitches", "VSwitch"),
        ("DescribeNetworkInterfaces", "NetworkInterfaceSets", "NetworkInterfaceSet"),
        ("DescribeRegions", "Regions", "Region"),
        ("DescribeZones", "Zones", "Zone"),
        ("DescribeTasks", "TaskSet", "Task"),
    ] {
        let reply = served.call(&key, action, &[]).await.unwrap();
        assert_eq!(reply[list][item].as_array().unwrap().len(), 1, "{action}");
    }
    let tags =
        served.call(&key, "ListTagResources", &[("ResourceType", "instance")]).await.unwrap();
    assert_eq!(tags["TagResources"]["TagResource"][0]["TagKey"], "a");
    let types = served.call(&key, "DescribeInstanceTypes", &[]).await.unwrap();
    assert!(types["InstanceTypes"]["InstanceType"].as_array().unwrap().len() > 190);
    let families = [("RegionId", REGION), ("Generation", "ecs-5")];
    let families = served.call(&key, "DescribeInstanceTypeFamilies", &families).await.unwrap();
    assert!(families.to_string().contains("ecs.g5"));
    let filter = [("InstanceTypes.1", "ecs.g5.large"), ("MinimumCpuCoreCount", "2")];
    let types = served.call(&key, "DescribeInstanceTypes", &filter).await.unwrap();
    assert_eq!(types["InstanceTypes"]["InstanceType"][0]["MemorySize"], 8.0);
}

#[tokio::test]
async fn the_other_api_version_and_form_answer_too() {
    let (served, key) = served().await;
    let parameters = [("Version", "2016-04-28"), ("Format", "XML"), ("VpcName", "default")];
    let query = served.sign(&key, "GET", "DescribeVpcs", &parameters);
    // A proxy's form of the target, and a host that is another's.
    let request = format!(
        "GET http://ecs.example.com/?{query} HTTP/1.1\r\nHost: ecs.example.com\r\nConnection: close\r\n\r\n"
    );
    let (status, head, body) = served.send(request.as_bytes()).await;
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("text/xml") && head.contains("x-acs-request-id"));
    assert!(body.starts_with("<?xml") && body.contains("<DescribeVpcsResponse>"), "{body}");
    assert!(body.contains("<VpcName>default</VpcName>"), "{body}");
}

#[tokio::test]
async fn parameters_may_come_in_a_form() {
    let (served, key) = served().await;
    let form = served.sign(&key, "POST", "DescribeInstances", &[]);
    let request = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}",
        form.len()
    );
    let (status, _, body) = served.send(request.as_bytes()).await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test]
async fn bad_callers_get_their_codes() {
    let (served, key) = served().await;
    let wrong = AccessKey { secret: "wrong".into(), ..key.clone() };
    let nobody = AccessKey { id: "LTAInobody".into(), ..key.clone() };
    let call = async |key: &AccessKey, parameters: &[(&str, &str)]| {
        served.call(key, "DescribeInstances", parameters).await.unwrap_err()
    };
    assert_eq!(call(&wrong, &[]).await, "400 SignatureDoesNotMatch");
    assert_eq!(call(&nobody, &[]).await, "404 InvalidAccessKeyId.NotFound");
    assert_eq!(call(&key, &[("Timestamp", "2016-02-23T12:46:24Z")]).await, "400 IllegalTimestamp");
    assert_eq!(call(&key, &[("Timestamp", "yesterday")]).await, "400 InvalidTimeStamp.Format");
    assert_eq!(call(&key, &[("Version", "2015-01-01")]).await, "400 InvalidVersion");
    assert_eq!(call(&key, &[("RegionId", "cn-hangzhou")]).await, "404 InvalidRegionId.NotFound");
    assert_eq!(call(&key, &[("RegionId", "")]).await, "400 MissingParameter");
    assert_eq!(
        call(&key, &[("SecurityToken", "x")]).await,
        "403 InvalidSecurityToken.MismatchWithAccessKey"
    );
    assert_eq!(
        call(&key, &[("KeyPairName", "x"), ("RdmaIpAddresses", "x")]).await,
        "400 UnsupportedParameter"
    );
    assert_eq!(call(&key, &[("PageSize", "x")]).await, "400 InvalidParameter");
    let query = served.sign(&key, "GET", "DescribeInstances", &[]);
    assert_eq!(served.get(&query).await.0, 200);
    let (status, replayed) = served.get(&query).await;
    assert_eq!((status, &replayed["Code"]), (400, &"SignatureNonceUsed".into()));
    for (action, code) in
        [("Dance", "404 InvalidAction.NotFound"), ("CreateSnapshot", "400 UnsupportedOperation")]
    {
        let parameters = [("DiskId", "d-1")];
        let (status, reply) = served.get(&served.sign(&key, "GET", action, &parameters)).await;
        assert_eq!(format!("{status} {}", reply["Code"].as_str().unwrap()), code);
    }
}

#[tokio::test]
async fn large_and_odd_requests_get_their_codes() {
    let (served, _) = served().await;
    let post = async |body: Vec<u8>| {
        let mut request = format!(
            "POST /?Format=JSON HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\
             Accept: application/json\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend(body);
        let (status, _, body) = served.send(&request).await;
        let reply: Value = serde_json::from_str(&body).unwrap();
        format!("{status} {}", reply["Code"].as_str().unwrap())
    };
    assert_eq!(post(vec![b'x'; 10 << 20]).await, "413 RequestEntityTooLarge");
    let many: String = (0..100_000).map(|n| format!("P{n}&")).collect();
    assert_eq!(post(many.into_bytes()).await, "400 InvalidParameter.TooManyParameters");
    assert_eq!(post(b"A=%ff".to_vec()).await, "400 InvalidParameter.Encoding");
    assert_eq!(post("A.1.".repeat(50).into_bytes()).await, "400 InvalidParameter");
    assert_eq!(post(Vec::new()).await, "400 MissingParameter");
    let request = b"PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let (status, _, body) = served.send(request).await;
    assert_eq!(status, 405);
    assert!(body.contains("<Code>UnsupportedHTTPMethod</Code>"), "{body}");
}

#[tokio::test]
async fn a_head_of_any_size_gets_an_answer_with_a_request_id() {
    let (served, key) = served().await;
    let long = "x".repeat(40_000);
    let many: String = (0..200).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let large: String = (0..50).map(|n| format!("X-{n}: {}\r\n", &long[..8000])).collect();
    for (target, fields, code) in [
        (format!("/?Format=JSON&A={}", long.repeat(2)), "", "414 RequestURITooLong"),
        (format!("/?Format=JSON&A={}", long.repeat(200)), "", "414 RequestURITooLong"),
        ("/?Format=JSON".to_owned(), many.as_str(), "431 RequestHeaderTooLarge"),
        ("http://x/?Format=JSON".to_owned(), &large, "431 RequestHeaderTooLarge"),
        // What is within the bounds is believed or not by its signature.
        (format!("/?Format=JSON&A={long}"), "", "400 MissingParameter"),
    ] {
        // A request that is good comes first: the connection stays, and the next head is a new one.
        let good = served.sign(&key, "GET", "DescribeRegions", &[]);
        let good = format!("GET /?{good} HTTP/1.1\r\nHost: x\r\n\r\n");
        let bad = format!("POST {target} HTTP/1.1\r\nHost: x\r\n{fields}Connection: close\r\n\r\n");
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(good.as_bytes()).await.unwrap();
        let mut first = Vec::new();
        while !first.ends_with(b"\"}") {
            assert_ne!(stream.read_buf(&mut first).await.unwrap(), 0);
        }
        assert!(first.starts_with(b"HTTP/1.1 200"));
        stream.write_all(bad.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let reply: Value = serde_json::from_str(body).unwrap();
        assert_eq!(format!("{} {}", &head[9..12], reply["Code"].as_str().unwrap()), code);
        assert!(!reply["RequestId"].as_str().unwrap().is_empty());
        assert!(!reply["HostId"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn another_tenants_things_do_not_exist() {
    let (served, key) = served().await;
    let other = served.cloud.tenant("two", Quota::default()).await;
    let id = run(&served, &key, &[]).await.unwrap();
    served.until(&key, &id, Some("Running")).await;
    let refused = async |action: &str, id: &str| {
        let (one, many) = ([("InstanceId", id)], [("InstanceId.1", id)]);
        let parameters = if action.ends_with("Instances") { &many } else { &one };
        served.call(&other, action, parameters).await.unwrap_err()
    };
    let nothing = "i-00000000000000000000";
    for action in [
        "StartInstance",
        "StopInstance",
        "RebootInstance",
        "DeleteInstance",
        "StopInstances",
        "DeleteInstances",
        "DescribeUserData",
        "DescribeInstanceAttribute",
    ] {
        let code = refused(action, &id).await;
        assert_eq!(code, "404 InvalidInstanceId.NotFound", "{action}");
        assert_eq!(code, refused(action, nothing).await, "{action}");
    }
    let listed = served.call(&other, "DescribeInstances", &[]).await.unwrap();
    assert_eq!(listed["TotalCount"], 0);
    assert_eq!(served.call(&other, "DescribeDisks", &[]).await.unwrap()["TotalCount"], 0);
    let groups = served.call(&key, "DescribeSecurityGroups", &[]).await.unwrap();
    let group = groups["SecurityGroups"]["SecurityGroup"][0]["SecurityGroupId"].as_str().unwrap();
    let code = run(&served, &other, &[("SecurityGroupId", group)]).await.unwrap_err();
    assert_eq!(code, "404 InvalidSecurityGroupId.NotFound");
}

#[tokio::test]
async fn a_token_makes_an_instance_once() {
    let (served, key) = served().await;
    let token = ("ClientToken", "token-1");
    let id = run(&served, &key, &[token]).await.unwrap();
    assert_eq!(run(&served, &key, &[token]).await.unwrap(), id);
    let other = run(&served, &key, &[token, ("InstanceName", "other")]).await.unwrap_err();
    assert_eq!(other, "400 IdempotentParameterMismatch");
    let (one, two) =
        (run(&served, &key, &[("ClientToken", "x")]), run(&served, &key, &[("ClientToken", "x")]));
    let (one, two) = tokio::join!(one, two);
    assert_eq!(one.unwrap(), two.unwrap());
    let listed = served.call(&key, "DescribeInstances", &[]).await.unwrap();
    assert_eq!(listed["TotalCount"], 2);
    let bad = run(&served, &key, &[("ClientToken", "é")]).await.unwrap_err();
    assert_eq!(bad, "400 InvalidParameter");
}

#[tokio::test]
async fn what_cannot_be_made_is_refused_and_nothing_is_made() {
    let (served, _) = served().await;
    let quota = Quota { instances: 2, ..Quota::default() };
    let key = served.cloud.tenant("small", quota).await;
    for (parameters, code) in [
        (&[("DryRun", "true")][..], "400 DryRunOperation"),
        (&[("Amount", "3")], "400 QuotaExceed.Instance"),
        (&[("Amount", "101")], "400 InvalidParameter"),
        (&[("InstanceType", "ecs.none")], "400 InvalidInstanceType.ValueNotSupported"),
        (&[("InstanceType", "ebm.lab")], "403 OperationDenied.NoStock"),
        (&[("InstanceType", "ecs.g5.16xlarge")], "403 OperationDenied.NoStock"),
        (&[("ImageId", "m-none")], "404 InvalidImageId.NotFound"),
        (&[("ImageId", "")], "400 MissingParameter"),
        (&[("VSwitchId", "vsw-none")], "404 InvalidVSwitchId.NotFound"),
        (
            &[("SystemDisk.Size", "10"), ("SystemDisk.Category", "cloud_ssd")],
            "403 InvalidDiskSize.TooSmall",
        ),
        (&[("SystemDisk.Category", "floppy")], "400 InvalidSystemDiskCategory.ValueNotSupported"),
        (&[("DataDisk.1.Category", "cloud_ssd")], "400 MissingParameter"),
        (&[("UserData", "*")], "400 InvalidParameter"),
        (&[("HostName", "-x-")], "400 InvalidParameter"),
        (&[("Password", "secret")], "400 UnsupportedParameter"),
        (&[("InternetMaxBandwidthOut", "5")], "400 InvalidParameter"),
        (&[("PrivateIpAddress", "10.0.0.1")], "400 InvalidParameter"),
        (&[("Tag.1.Value", "x")], "400 MissingParameter"),
    ] {
        let image = image();
        let mut all = vec![("ImageId", image.as_str()), ("InstanceType", "bixi.tiny")];
        all.retain(|(name, _)| parameters.iter().all(|(other, _)| other != name));
        all.extend(parameters);
        let refused = served.call(&key, "RunInstances", &all).await.unwrap_err();
        assert_eq!(refused, code, "{parameters:?}");
    }
    assert_eq!(served.call(&key, "DescribeInstances", &[]).await.unwrap()["TotalCount"], 0);
    let id = run(&served, &key, &[("DeletionProtection", "true")]).await.unwrap();
    served.until(&key, &id, Some("Running")).await;
    let delete = [("InstanceId", id.as_str()), ("Force", "true")];
    let refused = served.call(&key, "DeleteInstance", &delete).await.unwrap_err();
    assert_eq!(refused, "403 InvalidOperation.DeletionProtection");
}

#[tokio::test]
async fn as_many_are_made_as_there_is_room_for() {
    let (served, _) = served().await;
    let quota = Quota { instances: 100, disks: 2000, ..Quota::default() };
    let key = served.cloud.tenant("large", quota).await;
    let image = image();
    let ask = async |more: &[(&str, &str)]| {
        let mut all = vec![("ImageId", image.as_str()), ("InstanceType", "bixi.tiny")];
        all.extend(more);
        let reply = served.call(&key, "RunInstances", &all).await?;
        Ok::<_, String>(reply["InstanceIdSets"]["InstanceIdSet"].as_array().unwrap().len())
    };
    // The server has 32 vCPUs to give.
    assert_eq!(ask(&[("Amount", "100")]).await.unwrap_err(), "403 OperationDenied.NoStock");
    let too_few = [("Amount", "100"), ("MinAmount", "33")];
    assert_eq!(ask(&too_few).await.unwrap_err(), "403 OperationDenied.NoStock");
    let more = [("Amount", "101"), ("MinAmount", "1")];
    assert_eq!(ask(&more).await.unwrap_err(), "400 InvalidParameter");
    let none = served.call(&key, "DescribeInstances", &[]).await.unwrap();
    assert_eq!(none["TotalCount"], 0);
    let token = [("Amount", "100"), ("MinAmount", "32"), ("ClientToken", "t")];
    assert_eq!(ask(&token).await.unwrap(), 32);
    assert_eq!(ask(&token).await.unwrap(), 32);
    let all = served.call(&key, "DescribeInstances", &[]).await.unwrap();
    assert_eq!(all["TotalCount"], 32);
    assert_eq!(ask(&[("Amount", "69")]).await.unwrap_err(), "400 QuotaExceed.Instance");
    assert_eq!(ask(&[("Amount", "1")]).await.unwrap_err(), "403 OperationDenied.NoStock");
}

#[tokio::test]
async fn names_that_nobody_documents_are_told_back() {
    let (served, key) = served().await;
    let query = served.sign(
        &key,
        "GET",
        "DescribeRegions",
        &[("Unheard", "1"), ("OwnerId", "1"), ("on", "x")],
    );
    let request = format!("GET /?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let (status, head, _) = served.send(request.as_bytes()).await;
    assert_eq!(status, 200);
    assert!(head.contains("x-bixi-ignored-parameters: Unheard\r\n"), "{head}");
}

#[tokio::test]
async fn pages_go_through_all_instances() {
    let (served, key) = served().await;
    let image = image();
    let parameters = [("ImageId", image.as_str()), ("InstanceType", "bixi.tiny"), ("Amount", "12")];
    served.call(&key, "RunInstances", &parameters).await.unwrap();
    let (mut seen, mut token) = (Vec::new(), String::new());
    for _ in 0..3 {
        let page = [("MaxResults", "5"), ("NextToken", token.as_str())];
        let reply = served.call(&key, "DescribeInstances", &page).await.unwrap();
        seen.extend(ids(&reply));
        token = reply["NextToken"].as_str().unwrap().to_owned();
    }
    assert_eq!((seen.len(), token.as_str()), (12, ""));
    seen.dedup();
    assert_eq!(seen.len(), 12);
    let page = [("PageNumber", "2"), ("PageSize", "10")];
    let reply = served.call(&key, "DescribeInstances", &page).await.unwrap();
    assert_eq!((ids(&reply).len(), &reply["TotalCount"]), (2, &12.into()));
}
