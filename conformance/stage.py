"""Makes what the clients work with: an account, an organization, a gateway with its token.

Each step is a unary call of Connect in JSON, by the standard library alone: that is what the protocol promises.
"""

import json
import os
import ssl
import urllib.request

EDGE, CA = os.environ["EDGE"], os.environ["CA"]


def call(method, message, token=None):
    headers = {"content-type": "application/json", "connect-protocol-version": "1"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{EDGE}/{method}", json.dumps(message).encode(), headers)
    with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=CA)) as answer:
        assert answer.headers["content-type"] == "application/json", answer.headers
        return json.load(answer)


email, password = "conformance@example.com", "correct horse battery staple"
user = call("tollgate.auth.v1.AuthService/SignUp", {"email": email, "password": password, "name": "C"})
token = call("tollgate.auth.v1.AuthService/Login", {"email": email, "password": password})["accessToken"]
organization = call(
    "tollgate.project.v1.OrganizationService/CreateOrganization", {"handle": "conformance", "name": "C"}, token
)
gateway = call(
    "tollgate.gateway.v1.GatewayService/RegisterGateway",
    {"organizationId": organization["id"], "name": "conformance", "displayName": "C", "vhost": "gw.example.com"},
    token,
)
key = call("tollgate.gateway.v1.GatewayService/RotateToken", {"gatewayId": gateway["id"]}, token)["token"]
stage = {"user": user["id"], "token": token, "organization": organization["id"], "gateway": gateway["id"], "key": key}
with open(os.environ["STAGE"], "w") as file:
    json.dump(stage, file)
print("5 calls")
