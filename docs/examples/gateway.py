"""A gateway in forty lines: connects, fetches what it is told to run, acknowledges.

    pip install websockets
    API_KEY=tggw_... python3 docs/examples/gateway.py [HOST:PORT [CA_FILE]]
"""

import asyncio
import io
import json
import os
import ssl
import sys
import urllib.request
import zipfile

import websockets

HOST = sys.argv[1] if len(sys.argv) > 1 else "localhost:8443"
CA_FILE = sys.argv[2] if len(sys.argv) > 2 else "data/tls/ca.pem"
HEADERS = {"api-key": os.environ["API_KEY"]}
TLS = ssl.create_default_context(cafile=CA_FILE)


def fetch(api_id: str) -> str:
    """Returns the YAML document of an API: what a gateway needs to run it."""
    url = f"https://{HOST}/api/internal/v1/apis/{api_id}"
    request = urllib.request.Request(url, headers={**HEADERS, "accept": "application/zip"})
    with urllib.request.urlopen(request, context=TLS, timeout=30) as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    return archive.read(archive.namelist()[0]).decode()


def acknowledgement(event: dict, action: str) -> str:
    payload = {
        "deploymentId": event["payload"]["deploymentId"],
        "artifactId": event["payload"]["apiId"],
        "resourceType": "api",
        "action": action,
        "status": "success",
        "performedAt": event["payload"]["performedAt"],
    }
    return json.dumps({"type": "deployment.ack", "payload": payload})


async def main() -> None:
    url = f"wss://{HOST}/api/internal/v1/ws/gateways/connect"
    async with websockets.connect(url, ssl=TLS, additional_headers=HEADERS) as link:
        async for text in link:
            event = json.loads(text)
            print(json.dumps(event), flush=True)
            if event["type"] == "api.deployed":
                document = await asyncio.to_thread(fetch, event["payload"]["apiId"])
                print(document, flush=True)
                await link.send(acknowledgement(event, "deploy"))
            elif event["type"] == "api.undeployed":
                await link.send(acknowledgement(event, "undeploy"))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
