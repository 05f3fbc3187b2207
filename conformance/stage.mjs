// What the scripts share: the stage, the contract as descriptors, and a way to say what was checked.
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";

export const edge = process.env.EDGE;
export const stage = JSON.parse(readFileSync(process.env.STAGE, "utf8"));
export const registry = createFileRegistry(
  fromBinary(FileDescriptorSetSchema, readFileSync(process.env.DESCRIPTORS)),
);

export function service(name) {
  const found = registry.getService(name);
  if (!found) throw new Error(`${name} is not in the contract`);
  return found;
}

let checks = 0;
export function check(condition, what) {
  if (!condition) throw new Error(`failed: ${what}`);
  checks += 1;
}

export function done(what) {
  console.log(`${what}: ${checks} checks`);
  checks = 0;
}
