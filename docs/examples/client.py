"""Calls Tollgate over native gRPC with code generated from proto/.

    pip install grpcio-tools
    mkdir -p target/python
    python3 -m grpc_tools.protoc -I proto --python_out=target/python --grpc_python_out=target/python $(find proto -name '*.proto')
    TOKEN=eyJ... PYTHONPATH=target/python python3 docs/examples/client.py [HOST:PORT [CA_FILE]]
"""

import os
import sys

import grpc

from tollgate.auth.v1 import auth_pb2, auth_pb2_grpc
from tollgate.project.v1 import organization_pb2, organization_pb2_grpc

HOST = sys.argv[1] if len(sys.argv) > 1 else "localhost:8443"
CA_FILE = sys.argv[2] if len(sys.argv) > 2 else "data/tls/ca.pem"

with open(CA_FILE, "rb") as file:
    tls = grpc.ssl_channel_credentials(file.read())
token = [("authorization", f"Bearer {os.environ['TOKEN']}")]

with grpc.secure_channel(HOST, tls) as channel:
    accounts = auth_pb2_grpc.AuthServiceStub(channel)
    me = accounts.GetProfile(auth_pb2.GetProfileRequest(), metadata=token, timeout=5)
    print("I am", me.name, me.email)

    organizations = organization_pb2_grpc.OrganizationServiceStub(channel)
    page = organizations.ListOrganizations(
        organization_pb2.ListOrganizationsRequest(limit=10), metadata=token, timeout=5
    )
    for organization in page.list:
        print(organization.id, organization.handle, organization.role)
