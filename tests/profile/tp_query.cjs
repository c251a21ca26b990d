// Perfetto's own trace processor, as WebAssembly, under Node: the trace and SQL in, rows out.
//   node tp_query.cjs WEB_DIST TRACE 'select ...' 'select ...'
// prints one JSON array with an entry a query: {"columns": [...], "rows": [[...]]} or {"error": ...}
"use strict";
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [dist, tracePath, ...queries] = process.argv.slice(2);

// The engine is a worker's script: it must believe that it is in one, and see no Node.
const read = (name) => fs.readFileSync(path.join(dist, path.basename(String(name))));
class FileRequest {
  open(_method, url) { this.url = url; }
  send() {
    const data = read(this.url);
    this.response = data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
  }
}
const scope = {
  // Of this realm, since WebAssembly is: instanceof must hold on both sides.
  TypeError, Error, Promise, ArrayBuffer, Uint8Array, Int8Array, Int16Array, Uint16Array,
  Int32Array, Uint32Array, Float32Array, Float64Array, BigInt64Array, BigUint64Array, DataView,
  WebAssembly, TextDecoder, TextEncoder, URL, setTimeout, clearTimeout, performance, BigInt,
  console: { log() {}, warn() {}, error() {}, info() {}, debug() {} },
  XMLHttpRequest: FileRequest,
  WorkerGlobalScope: class {},
  location: { href: "http://localhost/engine_bundle.js" },
  crypto: globalThis.crypto,
  fetch: async (url) => {
    const data = read(url);
    return new Response(data, { headers: { "Content-Type": "application/wasm" } });
  },
};
scope.self = scope;
scope.importScripts = () => {};
vm.runInContext(read("engine_bundle.js").toString(), vm.createContext(scope));

// Protocol buffers, as much as trace_processor.proto needs.
function varint(value) {
  const out = [];
  for (let rest = BigInt(value); ; rest >>= 7n) {
    if (rest < 128n) { out.push(Number(rest)); return Buffer.from(out); }
    out.push(Number(rest & 127n) | 128);
  }
}
const integer = (field, value) => Buffer.concat([varint(field << 3), varint(value)]);
const block = (field, data) => Buffer.concat([varint((field << 3) | 2), varint(data.length), data]);
function* fields(data) {
  let at = 0;
  const next = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = data[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
  while (at < data.length) {
    const tag = Number(next());
    const kind = tag & 7;
    let value;
    if (kind === 0) value = next();
    else if (kind === 1) { value = data.subarray(at, at + 8); at += 8; }
    else if (kind === 2) { const size = Number(next()); value = data.subarray(at, at + size); at += size; }
    else if (kind === 5) { value = data.subarray(at, at + 4); at += 4; }
    else throw new Error(`wire type ${kind}`);
    yield [tag >>> 3, value];
  }
}
function* packed(data) {
  for (let at = 0; at < data.length; ) {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = data[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) break;
    }
    yield BigInt.asIntN(64, value);
  }
}

let reply = Buffer.alloc(0);
const port = {
  onmessage: null,
  postMessage(data) { reply = Buffer.concat([reply, Buffer.from(data)]); },
};
let sequence = 0;
function call(method, ...args) {
  reply = Buffer.alloc(0);
  const message = Buffer.concat([integer(1, ++sequence), integer(2, method), ...args]);
  const bytes = new Uint8Array(block(1, message));
  port.onmessage({ data: bytes });
  const answers = [];
  for (const [, message_] of fields(reply)) {
    for (const [field, value] of fields(message_)) {
      if (field === 5) throw new Error(value.toString());
      answers.push([field, value]);
    }
  }
  return answers;
}
const APPEND = 1, FINALIZE = 2, QUERY = 3;

function query(sql) {
  const columns = [], cells = [];
  for (const [field, result] of call(QUERY, block(103, block(1, Buffer.from(sql))))) {
    if (field !== 203) continue;
    for (const [part, value] of fields(result)) {
      if (part === 1) columns.push(value.toString());
      else if (part === 2 && value.length) return { error: value.toString() };
      else if (part === 3) cells.push(...batch(value));
    }
  }
  const rows = [];
  for (let at = 0; at < cells.length; at += columns.length) rows.push(cells.slice(at, at + columns.length));
  return { columns, rows };
}
function batch(data) {
  let kinds = [], numbers = [], doubles = [], strings = [];
  for (const [field, value] of fields(data)) {
    if (field === 1) kinds = [...value];
    else if (field === 2) numbers = [...packed(value)];
    else if (field === 3) {
      for (let at = 0; at < value.length; at += 8) doubles.push(value.readDoubleLE(at));
    } else if (field === 5) strings = value.toString().split("\0");
  }
  const from = { 2: () => Number(numbers.shift()), 3: () => doubles.shift(), 4: () => strings.shift() };
  return kinds.map((kind) => (from[kind] ? from[kind]() : null));
}

(async () => {
  scope.self.onmessage({ data: port });
  // The module starts on its own time; nothing tells from outside when it has.
  for (let waited = 0; ; waited++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    try { call(QUERY, block(103, block(1, Buffer.from("select 1")))); break; } catch (error) {
      if (waited > 1000) throw error;
    }
  }
  const trace = fs.readFileSync(tracePath);
  for (let at = 0; at < trace.length; at += 1 << 24) {
    call(APPEND, block(101, trace.subarray(at, at + (1 << 24))));
  }
  call(FINALIZE);
  process.stdout.write(JSON.stringify(queries.map(query)) + "\n", () => process.exit(0));
})().catch((error) => { process.stderr.write(`${error.stack}\n`); process.exit(1); });
