// grpc-web, the client of the gRPC project, in binary and in text. It is made for browsers: xhr2 is its XMLHttpRequest.
import { createRequire } from "node:module";
import { fromBinary, toBinary, create } from "@bufbuild/protobuf";
import { check, done, edge, service, stage } from "./stage.mjs";

const require = createRequire(import.meta.url);
globalThis.XMLHttpRequest = require("xhr2");
const { GrpcWebClientBase, MethodDescriptor, MethodType, StatusCode } = require("grpc-web");

function method(serviceName, name, type) {
  const { input, output } = service(serviceName).methods.find((one) => one.name === name);
  const path = `/${serviceName}/${name}`;
  return {
    path, input,
    info: new MethodDescriptor(
      path, type, Object, Object,
      (message) => toBinary(input, message), (bytes) => fromBinary(output, bytes),
    ),
  };
}

function unary(client, one, message, metadata) {
  return new Promise((resolve, reject) => {
    client.rpcCall(edge + one.path, create(one.input, message), metadata, one.info, (error, answer) =>
      error ? reject(error) : resolve(answer));
  });
}

const getProfile = method("tollgate.auth.v1.AuthService", "GetProfile", MethodType.UNARY);
const createProject = method("tollgate.project.v1.ProjectService", "CreateProject", MethodType.UNARY);
const subscribe = method("tollgate.gateway.v1.GatewayLink", "Subscribe", MethodType.SERVER_STREAMING);
const user = { authorization: `Bearer ${stage.token}` };

for (const format of ["text", "binary"]) {
  const client = new GrpcWebClientBase({ format });
  check((await unary(client, getProfile, {}, user)).id === stage.user, `${format}: a call`);
  const nobody = await unary(client, getProfile, {}, {}).catch((error) => error);
  check(nobody.code === StatusCode.UNAUTHENTICATED, `${format}: nobody: ${nobody}`);
  const bad = await unary(client, createProject, { organizationId: stage.organization }, user).catch((error) => error);
  check(bad.code === StatusCode.INVALID_ARGUMENT, `${format}: a broken rule: ${bad}`);
  if (format === "text") {
    // Only text mode streams: that is how the client is.
    const first = await new Promise((resolve, reject) => {
      const stream = client.serverStreaming(
        edge + subscribe.path, create(subscribe.input, { instanceId: "w" }), { "api-key": stage.key }, subscribe.info);
      stream.on("data", (frame) => { stream.cancel(); resolve(frame); });
      stream.on("error", reject);
    });
    check(first.frame.case === "connected", `${format}: a stream of answers`);
  }
  done(`grpc-web ${format}`);
}
process.exit(0);
