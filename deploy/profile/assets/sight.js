// What is in sight: the embedded rows, counted again for the stretch of time that is chosen.

const BINS = 240, STANDS_MOST = 4096;

function evenEdges(nr = BINS) {
  const edges = new Float64Array(nr + 1), wide = state.t1 - state.t0;
  const parts = R.ticks_per_s ? nr : Math.max(1, Math.min(nr, Math.round(wide)));
  for (let i = 0; i <= parts; i++) edges[i] = state.t0 + (wide * i) / parts;
  return edges.subarray(0, parts + 1);
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
  if (isWhole() && !state.domid) {
    const rate = R.rate || {};
    if (!rate.total || !rate.total.length) return null;
    return { edges: rate.edges, layers: Object.entries(rate.by_service) };
  }
  const edges = evenEdges(), domid = chosenDomid(), nr = edges.length - 1, per = nr / (state.t1 - state.t0);
  const layers = services.map((name) => [name, new Float64Array(nr)]), [first, end] = rowsInSight(M.started);
  for (let i = first; i < end; i++) {
    if (domid >= 0 && M.domid[i] !== domid) continue;
    layers[serviceOfName[M.dst[i]]][1][Math.min(nr - 1, Math.floor((M.started[i] - state.t0) * per))] += M.stands[i];
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
// Nearest values that occurred, as the report has them; of a sample each row stands for others.
function percentiles(values, stands) {
  if (!values.length) return { p50: 0, p90: 0, p99: 0, max: 0, total: 0 };
  if (!stands) {
    values.sort();
    const top = values.length - 1, at = (share) => values[Math.floor((top * share) / 100)];
    return { p50: at(50), p90: at(90), p99: at(99), max: values[top], total: values.reduce((a, b) => a + b, 0) };
  }
  // Each value with its weight in one number, as typed arrays of numbers are sorted ten times faster.
  const packed = Float64Array.from(values, (v, i) => v * STANDS_MOST + Math.min(stands[i], STANDS_MOST - 1)).sort(), upTo = new Float64Array(packed.length);
  const value = (i) => Math.floor(packed[i] / STANDS_MOST);
  let nr = 0, total = 0;
  for (let i = 0; i < packed.length; i++) {
    const weight = packed[i] % STANDS_MOST;
    upTo[i] = nr += weight;
    total += value(i) * weight;
  }
  const at = (share) => value(Math.min(packed.length - 1, nrBefore(upTo, Math.floor(((nr - 1) * share) / 100), true)));
  return { p50: at(50), p90: at(90), p99: at(99), max: value(packed.length - 1), total };
}
// Figures of each kind or service: of the whole run from the report, of a part from the rows.
function figuresInSight(group) {
  if (isWhole() && !state.domid) return { figures: R[group] || {}, part: false };
  const domid = chosenDomid(), groups = new Map(), [first, end] = rowsInSight(M.started);
  let rows = 0;
  for (let i = first; i < end; i++) {
    if (domid >= 0 && M.domid[i] !== domid) continue;
    const key = group === "messages" ? M.kind[i] : serviceOfName[M.dst[i]];
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(i);
    rows++;
  }
  const figures = {};
  for (const [key, mine] of groups) figures[group === "messages" ? D.kinds[key] : services[key]] = figuresOf(mine);
  return { figures, part: true, rows };
}
function figuresOf(rows) {
  const pick = (of, mine = rows) => percentiles(Float64Array.from(mine, of), M.complete ? null : Float64Array.from(mine, (i) => M.stands[i]));
  let size = 0, nr = 0;
  for (const i of rows) { size += M.bytes[i] * M.stands[i]; nr += M.stands[i]; }
  return {
    count: nr, bytes: size, ...pick(latencyOf, rows.filter((i) => M.lasted[i])),
    queue: pick((i) => M.queue[i]), service: pick((i) => M.busy[i]), lock: pick((i) => M.lock_wait[i]),
    awaiting: pick(awaitingOf),
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
      if (share > 0) out[b] += (M.stands[i] * share) / wide;
    }
  }
  return { edges, layers: layers.filter(([, values]) => values.some((v) => v > 0)) };
}
