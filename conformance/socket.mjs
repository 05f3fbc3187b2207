// A call in both directions over WebSocket, as docs/websocket.md describes it.
import { once } from "node:events";
import WebSocket from "ws";
import { check, done, edge, stage } from "./stage.mjs";

const url = `${edge.replace("https", "wss")}/tollgate.gateway.v1.GatewayLink/Connect`;
const socket = new WebSocket(url, ["connect.v1+json"], { headers: { "api-key": stage.key } });
const records = [];
socket.on("message", (data) => {
  records.push(JSON.parse(data));
  if (records.length === 1) socket.send('{"end":{}}');
});
await once(socket, "open");
check(socket.protocol === "connect.v1+json", "the framing is agreed on");
socket.send(JSON.stringify({ message: { hello: { instanceId: "s" } } }));
const [code] = await once(socket, "close");
check(records[0].message.connected.gatewayId === stage.gateway, "the first message");
check(records.at(-1).end !== undefined && code === 1000, `the end: ${JSON.stringify(records)} ${code}`);

const refused = new WebSocket(url, ["connect.v1+json"]);
const [error] = await once(refused, "error");
check(/401/.test(error.message), `nobody is refused before the upgrade: ${error}`);
done("websocket");
process.exit(0);
