// @connectrpc/connect-node: its three protocols over HTTP/1.1 and HTTP/2, in both formats, with each compression.
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import {
  compressionBrotli, compressionGzip, createConnectTransport, createGrpcTransport, createGrpcWebTransport,
} from "@connectrpc/connect-node";
import { check, done, edge, service, stage } from "./stage.mjs";

const auth = service("tollgate.auth.v1.AuthService");
const organizations = service("tollgate.project.v1.OrganizationService");
const projects = service("tollgate.project.v1.ProjectService");
const link = service("tollgate.gateway.v1.GatewayLink");
const user = { headers: { authorization: `Bearer ${stage.token}` } };
const gateway = { headers: { "api-key": stage.key } };

async function fails(call, code, what) {
  try {
    await call();
  } catch (error) {
    const found = ConnectError.from(error);
    check(found.code === code, `${what}: ${Code[code]} and not ${found}`);
    return found;
  }
  throw new Error(`${what} did not fail`);
}

async function unary(transport, name, number) {
  const profile = await createClient(auth, transport).getProfile({}, user);
  check(profile.id === stage.user, `${name}: a call`);
  const page = await createClient(organizations, transport).listOrganizations({}, user);
  check(page.list.some((one) => one.id === stage.organization), `${name}: a list`);
  const project = await createClient(projects, transport).createProject(
    { organizationId: stage.organization, name: `P${number}`, description: "words ".repeat(170).trim() }, user,
  );
  check(project.description.length === 1019, `${name}: a message that is compressed`);
  const client = createClient(auth, transport);
  const nobody = await fails(() => client.getProfile({}), Code.Unauthenticated, `${name}: nobody`);
  check(nobody.details.some((detail) => detail.type === "google.rpc.ErrorInfo"), `${name}: details`);
  await fails(() => client.getProfile({}, { headers: { authorization: "Bearer x" } }), Code.Unauthenticated, `${name}: a bad token`);
  const bad = await fails(
    () => createClient(projects, transport).createProject({ organizationId: stage.organization }, user),
    Code.InvalidArgument, `${name}: a broken rule`,
  );
  check(bad.details.some((detail) => detail.type === "google.rpc.BadRequest"), `${name}: which rule`);
  await fails(
    () => createClient(projects, transport).getProject({ projectId: "00000000-0000-7000-8000-000000000000" }, user),
    Code.NotFound, `${name}: nothing there`,
  );
  const checkMethod = service("tollgate.project.v1.AccessService");
  await fails(() => createClient(checkMethod, transport).check({}, user), Code.Unimplemented, `${name}: not for outside`);
}

async function streams(transport, name, both) {
  const client = createClient(link, transport);
  let kinds = [];
  const stop = new AbortController();
  try {
    for await (const frame of client.subscribe({ instanceId: "c" }, { ...gateway, signal: stop.signal })) {
      kinds.push(frame.frame.case);
      stop.abort();
    }
  } catch (error) {
    check(ConnectError.from(error).code === Code.Canceled, `${name}: a stream that is given up: ${error}`);
  }
  check(kinds[0] === "connected", `${name}: a stream of answers`);
  await fails(async () => {
    for await (const _ of client.subscribe({}, { headers: { "api-key": "x" } }));
  }, Code.Unauthenticated, `${name}: a stream that is refused`);
  if (!both) return;
  async function* hello() {
    yield { frame: { case: "hello", value: { instanceId: "d" } } };
    yield { frame: { case: "heartbeat", value: {} } };
  }
  kinds = [];
  for await (const frame of client.connect(hello(), gateway)) kinds.push(frame.frame.case);
  check(kinds[0] === "connected", `${name}: both directions: ${kinds}`);
}

let number = 0;
for (const httpVersion of ["1.1", "2"]) {
  for (const useBinaryFormat of [true, false]) {
    for (const compression of [null, compressionGzip, compressionBrotli]) {
      const sendCompression = compression ?? undefined;
      const options = { baseUrl: edge, httpVersion, useBinaryFormat, sendCompression, compressMinBytes: 100 };
      const form = `${httpVersion} ${useBinaryFormat ? "proto" : "json"} ${compression?.name ?? "plain"}`;
      const makes = [["connect", createConnectTransport], ["connect with get", (o) => createConnectTransport({ ...o, useHttpGet: true })]];
      if (useBinaryFormat) {
        makes.push(["grpc-web", createGrpcWebTransport]);
        if (httpVersion === "2") makes.push(["grpc", createGrpcTransport]);
      }
      for (const [name, make] of makes) {
        const transport = make(options);
        await unary(transport, `${name} ${form}`, number++);
        await streams(transport, `${name} ${form}`, httpVersion === "2" && name !== "grpc-web" && name !== "connect with get");
        done(`${name} ${form}`);
      }
    }
  }
}
process.exit(0);
