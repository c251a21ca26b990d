// What is in sight: the embedded rows, counted again for the stretch of time that is chosen.

const BINS = 240;

function evenEdges(nr = BINS) {
  const edges = new Float64Array(nr + 1), wide = state.t1 - state.t0;
  const parts = R.ticks_per_s ? nr : Math.max(1, Math.min(nr, Math.round(wide)));
  for (let i = 0; i <= parts; i++) edges[i] = state.t0 + (wide * i) / parts;
  return edges.subarray(0, parts + 1);
}
function counted(times, edges, weigh) {
  const nr = edges.length - 1, out = new Float64Array(nr), per = nr / (state.t1 - state.t0);
  for (let i = 0; i < times.length; i++) {
    if (times[i] < state.t0 || times[i] > state.t1) continue;
    const weight = weigh ? weigh(i) : 1;
    if (weight) out[Math.min(nr - 1, Math.floor((times[i] - state.t0) * per))] += weight;
  }
  return out;
}
let serviceOfName = [];
let services = [];
function nameServices() {
  services = [...new Set(D.names.map(service))].sort();
  serviceOfName = D.names.map((name) => services.indexOf(service(name)));
}

// Messages by service over time: of all from the report, finer from the rows once zoomed.
function rateInSight() {
  if (!M.of) return null;
  if ((isWhole() && !state.domid) || !M.complete) {
    const rate = R.rate || {};
    if (!rate.total || !rate.total.length) return null;
    return { edges: rate.edges, layers: Object.entries(rate.by_service).map(([name, values]) => [name, values]) };
  }
  const edges = evenEdges(), domid = state.domid === "" ? NONE : Number(state.domid);
  const layers = services.map((name) => [name, new Float64Array(edges.length - 1)]);
  const nr = edges.length - 1, per = nr / (state.t1 - state.t0);
  for (let i = 0; i < M.rows; i++) {
    const t = M.started[i];
    if (t < state.t0 || t > state.t1 || (domid >= 0 && M.domid[i] !== domid)) continue;
    layers[serviceOfName[M.dst[i]]][1][Math.min(nr - 1, Math.floor((t - state.t0) * per))]++;
  }
  return { edges, layers: layers.filter(([, values]) => values.some((v) => v)) };
}
function seriesSum(name) {
  const sections = (state.domid ? [R.domains[state.domid]] : Object.values(R.domains)).filter((d) => d && d.series);
  if (!sections.length) return null;
  const out = new Float64Array(sections[0].series.edges.length - 1);
  for (const d of sections) (d.series[name] || []).forEach((v, i) => (out[i] += v));
  return { edges: sections[0].series.edges, values: out };
}
function updatesInSight() {
  if (isWhole() || !U.complete) return seriesSum("updates");
  const edges = evenEdges(), domid = state.domid === "" ? NONE : Number(state.domid);
  return { edges, values: counted(U.time, edges, (i) => domid < 0 || U.domid[i] === domid) };
}
function shattersInSight() {
  if (isWhole() || !D.flagged) return seriesSum("shatters");
  const edges = evenEdges(), domid = state.domid === "" ? NONE : Number(state.domid);
  return { edges, values: counted(U.time, edges, (i) => U.shatters[i] && (domid < 0 || U.domid[i] === domid)) };
}

// Nearest values that occurred, as the report has them.
function percentiles(values) {
  values.sort();
  const top = values.length - 1, at = (share) => values[Math.floor((top * share) / 100)];
  let total = 0;
  for (const v of values) total += v;
  return top < 0 ? { p50: 0, p90: 0, p99: 0, max: 0, total: 0 } : { p50: at(50), p90: at(90), p99: at(99), max: values[top], total };
}
// Figures of each kind or service: of the whole run from the report, of a part from the rows.
function figuresInSight(group) {
  if ((isWhole() && !state.domid) || !M.complete) return { figures: R[group] || {}, part: false };
  const domid = state.domid === "" ? NONE : Number(state.domid), groups = new Map();
  for (let i = 0; i < M.rows; i++) {
    if (M.started[i] < state.t0 || M.started[i] > state.t1 || (domid >= 0 && M.domid[i] !== domid)) continue;
    const key = group === "messages" ? M.kind[i] : serviceOfName[M.dst[i]];
    let rows = groups.get(key);
    if (!rows) groups.set(key, (rows = []));
    rows.push(i);
  }
  const figures = {};
  for (const [key, rows] of groups) figures[group === "messages" ? D.kinds[key] : services[key]] = figuresOf(rows);
  return { figures, part: true };
}
function figuresOf(rows) {
  const pick = (of) => percentiles(Float64Array.from(rows, of));
  const answered = rows.filter((i) => M.lasted[i]);
  let size = 0;
  for (const i of rows) size += M.bytes[i];
  return {
    count: rows.length, bytes: size,
    ...percentiles(Float64Array.from(answered, latencyOf)),
    queue: pick((i) => M.queue[i]), service: pick((i) => M.busy[i]), lock: pick((i) => M.lock_wait[i]),
    awaiting: pick((i) => (M.lasted[i] ? Math.max(0, M.lasted[i] - 1 - M.busy[i] - M.lock_wait[i]) : 0)),
  };
}
// How many messages waited in the mailboxes of each service, on average over each bin.
function queuesInSight() {
  const edges = evenEdges(), nr = edges.length - 1, wide = (state.t1 - state.t0) / nr;
  const layers = services.map((name) => [name, new Float64Array(nr)]);
  for (let i = 0; i < M.rows; i++) {
    const end = Math.min(M.started[i], state.t1), begin = Math.max(M.started[i] - M.queue[i], state.t0);
    if (end <= begin) continue;
    const out = layers[serviceOfName[M.dst[i]]][1];
    const last = Math.min(nr - 1, Math.floor((end - state.t0) / wide));
    for (let b = Math.floor((begin - state.t0) / wide); b <= last; b++) {
      const share = Math.min(end, edges[b + 1]) - Math.max(begin, edges[b]);
      if (share > 0) out[b] += share / wide;
    }
  }
  return { edges, layers: layers.filter(([, values]) => values.some((v) => v > 0)) };
}
