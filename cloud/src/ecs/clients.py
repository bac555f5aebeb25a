"""Runs, lists, stops and deletes instances through unmodified clients of Alibaba Cloud.

Called with: http address, https address, CA file, access key, secret, region, image. Ends with 0 if every client did
everything over both.
"""

import json
import os
import sys
import time

HTTP, HTTPS, CA, KEY, SECRET, REGION, IMAGE = sys.argv[1:]
# libcloud takes its authorities from here.
os.environ["SSL_CERT_FILE"] = CA
TYPE = "bixi.tiny"


def until(what, condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"{what}: not within 30 s"
        time.sleep(0.05)


def aliyun_python_sdk(endpoint, https):
    from aliyunsdkcore.acs_exception.exceptions import ServerException
    from aliyunsdkcore.client import AcsClient
    from aliyunsdkecs.request.v20140526 import (
        DeleteInstanceRequest,
        DescribeInstancesRequest,
        DescribeRegionsRequest,
        RunInstancesRequest,
        StopInstanceRequest,
    )

    client = AcsClient(KEY, SECRET, REGION, verify=CA if https else None)

    def call(request, **fields):
        request.set_endpoint(endpoint)
        request.set_protocol_type("https" if https else "http")
        for name, value in fields.items():
            getattr(request, f"set_{name}")(value)
        return json.loads(client.do_action_with_exception(request))

    def status(instance):
        reply = call(DescribeInstancesRequest.DescribeInstancesRequest(), InstanceIds=json.dumps([instance]))
        return [i["Status"] for i in reply["Instances"]["Instance"]]

    regions = call(DescribeRegionsRequest.DescribeRegionsRequest())
    assert regions["Regions"]["Region"][0]["RegionId"] == REGION, regions
    run = dict(InstanceType=TYPE, ImageId=IMAGE, InstanceName="名字 a*b~c/d+e", Tags=[{"Key": "k", "Value": "v w"}])
    [instance] = call(RunInstancesRequest.RunInstancesRequest(), **run)["InstanceIdSets"]["InstanceIdSet"]
    until("run", lambda: status(instance) == ["Running"])
    call(StopInstanceRequest.StopInstanceRequest(), InstanceId=instance, ForceStop=True)
    until("stop", lambda: status(instance) == ["Stopped"])
    call(DeleteInstanceRequest.DeleteInstanceRequest(), InstanceId=instance)
    until("delete", lambda: status(instance) == [])
    # Its own words for a wrong secret show that it finds the string to sign in our message.
    client = AcsClient(KEY, SECRET + "x", REGION, verify=CA if https else None)
    try:
        status(instance)
        raise AssertionError("a wrong secret was believed")
    except ServerException as error:
        assert error.get_error_code() == "InvalidAccessKeySecret", error


def alibabacloud(endpoint, https):
    from alibabacloud_ecs20140526 import models
    from alibabacloud_ecs20140526.client import Client
    from alibabacloud_tea_openapi.models import Config
    from Tea.exceptions import TeaException

    protocol = "https" if https else "http"
    config = Config(access_key_id=KEY, access_key_secret=SECRET, endpoint=endpoint, protocol=protocol, region_id=REGION)
    if https:
        config.ca = CA
    client = Client(config)

    def status(instance):
        wanted = models.DescribeInstancesRequest(region_id=REGION, instance_ids=json.dumps([instance]))
        return [i.status for i in client.describe_instances(wanted).body.instances.instance]

    wanted = models.RunInstancesRequest(
        region_id=REGION,
        instance_type=TYPE,
        image_id=IMAGE,
        instance_name="名字 a*b~c/d+e",
        client_token=f"token-{protocol}",
        tag=[models.RunInstancesRequestTag(key="k", value="v w")],
        data_disk=[models.RunInstancesRequestDataDisk(size=2)],
    )
    [instance] = client.run_instances(wanted).body.instance_id_sets.instance_id_set
    again = client.run_instances(wanted).body.instance_id_sets.instance_id_set
    assert again == [instance], again
    until("run", lambda: status(instance) == ["Running"])
    named = models.DescribeInstancesRequest(region_id=REGION, max_results=10, tag=[
        models.DescribeInstancesRequestTag(key="k", value="v w")])
    listed = client.describe_instances(named).body.instances.instance
    assert [i.instance_name for i in listed if i.instance_id == instance] == ["名字 a*b~c/d+e"], listed
    client.stop_instances(models.StopInstancesRequest(region_id=REGION, instance_id=[instance], force_stop=True))
    until("stop", lambda: status(instance) == ["Stopped"])
    client.delete_instances(models.DeleteInstancesRequest(region_id=REGION, instance_id=[instance]))
    until("delete", lambda: status(instance) == [])
    try:
        client.stop_instance(models.StopInstanceRequest(instance_id=instance))
        raise AssertionError("an instance that is gone was stopped")
    except TeaException as error:
        assert error.code == "InvalidInstanceId.NotFound", error


def libcloud(endpoint, https):
    from libcloud.compute.providers import get_driver
    from libcloud.compute.types import NodeState, Provider

    host, port = endpoint.rsplit(":", 1)
    driver = get_driver(Provider.ALIYUN_ECS)(KEY, SECRET, region=REGION, host=host, port=int(port), secure=https)
    assert [place.id for place in driver.list_locations()] == [REGION]
    [zone] = driver.ex_list_zones()
    assert TYPE in zone.available_instance_types and zone.available_disk_categories, zone.extra
    [size] = [size for size in driver.list_sizes() if size.id == TYPE]
    [image] = [image for image in driver.list_images() if image.id == IMAGE]
    [group] = driver.ex_list_security_groups()
    node = driver.create_node("名字 a*b~c", size, image, ex_security_group_id=group.id)
    assert node.id in [other.id for other in driver.list_nodes()]
    assert [disk.size for disk in driver.list_volumes(ex_filters={"InstanceId": node.id})] == [1]
    assert driver.reboot_node(node)

    def state():
        return [other.state for other in driver.list_nodes(ex_node_ids=[node.id])]

    until("reboot", lambda: state() == [NodeState.RUNNING])
    assert driver.ex_stop_node(node, ex_force_stop=True)
    assert driver.destroy_node(node)
    until("delete", lambda: state() == [])


for client in (aliyun_python_sdk, alibabacloud, libcloud):
    for endpoint, https in ((HTTP, False), (HTTPS, True)):
        if endpoint == "-":
            continue
        began = time.monotonic()
        client(endpoint, https)
        print(f"{client.__name__} over {'HTTPS' if https else 'HTTP'}: {time.monotonic() - began:.1f} s", flush=True)
