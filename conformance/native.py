"""grpcio: calls, streams, errors with details, deadlines, compression; health checking and reflection."""

import json
import os
from urllib.parse import urlparse

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tollgate.auth.v1 import auth_pb2, auth_pb2_grpc
from tollgate.gateway.v1 import link_pb2, link_pb2_grpc
from tollgate.project.v1 import project_pb2, project_pb2_grpc

checks = 0


def check(condition, what):
    global checks
    assert condition, what
    checks += 1


def fails(call, code, what, *others):
    try:
        call()
    except grpc.RpcError as error:
        check(error.code() in (code, *others), f"{what}: {error}")
        return error
    raise AssertionError(f"{what} did not fail")


with open(os.environ["STAGE"]) as file:
    stage = json.load(file)
with open(os.environ["CA"], "rb") as file:
    credentials = grpc.ssl_channel_credentials(file.read())
channel = grpc.secure_channel(f"localhost:{urlparse(os.environ['EDGE']).port}", credentials)
user, gateway = [("authorization", f"Bearer {stage['token']}")], [("api-key", stage["key"])]
auth = auth_pb2_grpc.AuthServiceStub(channel)
projects = project_pb2_grpc.ProjectServiceStub(channel)
link = link_pb2_grpc.GatewayLinkStub(channel)

for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
    profile = auth.GetProfile(auth_pb2.GetProfileRequest(), metadata=user, compression=compression)
    check(profile.id == stage["user"], "a call")
    request = project_pb2.CreateProjectRequest(
        organization_id=stage["organization"], name=f"N{int(compression)}", description="word " * 200
    )
    project = projects.CreateProject(request, metadata=user, compression=compression)
    check(project.name == request.name, "a large message")

fails(lambda: auth.GetProfile(auth_pb2.GetProfileRequest()), grpc.StatusCode.UNAUTHENTICATED, "nobody")
bad = fails(
    lambda: projects.CreateProject(project_pb2.CreateProjectRequest(), metadata=user),
    grpc.StatusCode.INVALID_ARGUMENT,
    "a broken rule",
)
trailers = dict(bad.trailing_metadata())
check(b"BadRequest" in trailers["grpc-status-details-bin"], "details")
fails(
    lambda: channel.unary_unary("/tollgate.project.v1.AccessService/Check")(b"", metadata=user),
    grpc.StatusCode.UNIMPLEMENTED,
    "not for outside",
)
large = project_pb2.CreateProjectRequest(description="x" * (1024 * 1024 + 1))
for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
    call = lambda: projects.CreateProject(large, metadata=user, compression=compression)
    # What is not compressed passes unread: the service may see the length before the edge has counted so far.
    fails(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "over the limit", grpc.StatusCode.OUT_OF_RANGE)

subscription = link.Subscribe(link_pb2.SubscribeRequest(instance_id="n"), metadata=gateway)
check(next(subscription).WhichOneof("frame") == "connected", "a stream of answers")
subscription.cancel()
check(subscription.code() == grpc.StatusCode.CANCELLED, "a stream that is given up")
hello = [link_pb2.GatewayFrame(hello=link_pb2.Hello(instance_id="m"))]
for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
    both = link.Connect(iter(hello), metadata=gateway, compression=compression)
    check(next(both).WhichOneof("frame") == "connected", "both directions")
    both.cancel()
late = link.Subscribe(link_pb2.SubscribeRequest(instance_id="l"), metadata=gateway, timeout=1)
fails(lambda: list(late), grpc.StatusCode.DEADLINE_EXCEEDED, "a deadline")

health = health_pb2_grpc.HealthStub(channel)
serving = health_pb2.HealthCheckResponse.SERVING
check(health.Check(health_pb2.HealthCheckRequest()).status == serving, "health")
unknown = lambda: health.Check(health_pb2.HealthCheckRequest(service="x"))
fails(unknown, grpc.StatusCode.NOT_FOUND, "health of nothing")
watch = health.Watch(health_pb2.HealthCheckRequest())
check(next(watch).status == serving, "health, watched")
watch.cancel()

database = ProtoReflectionDescriptorDatabase(channel)
check("tollgate.auth.v1.AuthService" in database.get_services(), "reflection lists services")
found = DescriptorPool(database).FindServiceByName("tollgate.auth.v1.AuthService")
check(found.FindMethodByName("GetProfile") is not None, "reflection describes them")
print(f"grpcio: {checks} checks")
