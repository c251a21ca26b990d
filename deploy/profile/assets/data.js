"use strict";
// What page.py wrote: one JSON, and columns of numbers behind each other in one block.

const $ = (id) => document.getElementById(id);
const all = (selector) => document.querySelectorAll(selector);
const NONE = -1;
const CLIENT_SHARD = 65535;
const ARRAYS = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: Float64Array };

let D; // everything
let R; // the report
let M; // messages, by the time when their handling began
let U; // p2m updates
let E; // other events
let S; // what each domain had mapped, from each time on
let C; // populate_physmap calls
let H; // hypercalls of a real Xen
let P; // who ran on which pcpu
let domids;

const state = {
  t0: 0, t1: 1, // what is in sight
  g0: NONE, g1: NONE, // the gfns that the map shows, NONE for all
  domid: "", kind: "", gfn: NONE, row: NONE,
  metric: "updates", group: "messages", of: "latency", sort: "service", down: true,
  by: "", byDown: true, // how the list of messages is sorted
  theme: "",
};

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text), out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

async function inflate(id) {
  const script = $(id), packed = bytesOf(script.textContent);
  script.remove();
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function column(packed, rows, block) {
  const out = new Float64Array(rows);
  if (!packed.width) return out.fill(packed.base);
  const data = new ARRAYS[packed.width](block, packed.at, rows);
  let sum = packed.base;
  if (packed.sum) for (let i = 0; i < rows; i++) out[i] = sum += data[i];
  else for (let i = 0; i < rows; i++) out[i] = sum + data[i];
  return out;
}

function table(packed, block) {
  const made = { rows: packed.rows, of: packed.of, complete: packed.rows === packed.of };
  for (const [name, each] of Object.entries(packed.columns)) made[name] = column(each, packed.rows, block);
  return made;
}

async function readData() {
  const [json, block] = await Promise.all([inflate("data"), inflate("block")]);
  D = JSON.parse(new TextDecoder().decode(json));
  R = D.report;
  R.domains = R.domains || {};
  R.messages = R.messages || {};
  [M, U, E, P, S, C, H] = [D.messages, D.updates, D.memory, D.running, D.steps, D.calls, D.made].map((each) => table(each, block));
  domids = Object.keys(R.domains).sort((a, b) => a - b);
  const broken = U.shatters.reduce((n, flags) => n + (flags ? 1 : 0), 0);
  U.brokeEach = broken ? D.broken / broken : 0; // how many shatters one of this page stands for
  R.span = R.span || [0, 1];
  if (R.span[1] <= R.span[0]) R.span[1] = R.span[0] + 1;
  [state.t0, state.t1] = R.span;
}

// The row of p2m/3#17, NONE if this page does not hold it.
function rowOf(id) {
  const [, name, seq] = /^(.*)#(\d+)$/.exec(id) || [];
  const src = D.names.indexOf(name), number = Number(seq);
  if (src < 0) return NONE;
  for (let i = 0; i < M.rows; i++) if (M.seq[i] === number && M.src[i] === src) return i;
  return NONE;
}
// How many of ascending `times` are before t; with `through` those at t, too.
function nrBefore(times, t, through = false) {
  let a = 0, b = times.length;
  while (a < b) {
    const middle = (a + b) >> 1;
    if (times[middle] < t || (through && times[middle] === t)) a = middle + 1; else b = middle;
  }
  return a;
}
// The rows of ascending `times` that are in sight: [first, end).
const rowsInSight = (times) => [nrBefore(times, state.t0), nrBefore(times, state.t1, true)];
const chosenDomid = () => (state.domid === "" ? NONE : Number(state.domid));
const idOf = (i) => `${D.names[M.src[i]]}#${M.seq[i]}`;
const sentAt = (i) => M.started[i] - M.queue[i] - M.transit[i];
const endedAt = (i) => (M.lasted[i] ? M.started[i] + M.lasted[i] - 1 : M.started[i]);
const latencyOf = (i) => (M.lasted[i] ? M.queue[i] + M.lasted[i] - 1 : 0);
const awaitingOf = (i) => (M.lasted[i] ? Math.max(0, M.lasted[i] - 1 - M.busy[i] - M.lock_wait[i]) : 0);
const isWhole = () => state.t0 === R.span[0] && state.t1 === R.span[1];
const superpage = (gfn) => Math.floor(gfn / 512) * 512;
