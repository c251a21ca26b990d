// What was mapped and what happened in sight, as fine as the plot: from rows, not from the report's bins.

const EVENT_LANES = { npf: "nested_faults", pod_populate: "pod_populate", pod_superpage_splinter: "pod_splinter", pod_zero_reclaim: "pod_reclaim" };
const LANES = ["shatters", "updates", "populate_calls", "extents", "fallbacks", "nested_faults", "pod_populate", "pod_splinter", "pod_reclaim"];
const levelCache = new Map();

// When what is mapped changes, of the chosen domain or of all together: frames by order.
function levels(domid) {
  if (levelCache.has(domid)) return levelCache.get(domid);
  const orders = D.orders.map(String), times = new Float64Array(S.rows), frames = orders.map(() => new Float64Array(S.rows));
  const now = orders.map(() => 0), before = new Map();
  let nr = 0;
  for (let i = 0; i < S.rows; i++) {
    const mine = S.domid[i];
    if (domid >= 0 && mine !== domid) continue;
    let last = before.get(mine);
    if (!last) before.set(mine, (last = orders.map(() => 0)));
    if (nr && times[nr - 1] === S.time[i]) nr--;
    times[nr] = S.time[i];
    for (let o = 0; o < orders.length; o++) {
      const mapped = S[orders[o]][i] * Math.pow(2, D.orders[o]);
      now[o] += mapped - last[o];
      last[o] = mapped;
      frames[o][nr] = now[o];
    }
    nr++;
  }
  const used = orders.map((_, o) => o).filter((o) => frames[o].subarray(0, nr).some((v) => v > 0));
  const found = { times: times.subarray(0, nr), frames: Object.fromEntries(used.map((o) => [orders[o], frames[o].subarray(0, nr)])) };
  levelCache.set(domid, found);
  return found;
}
// The same at given edges: what is mapped when each bin ends.
function levelsAt(found, edges, exact) {
  const nr = edges.length - 1, mapped = {}, at = new Int32Array(nr);
  for (let i = 0; i < nr; i++) at[i] = nrBefore(found.times, edges[exact ? i : i + 1], exact || i === nr - 1) - 1;
  for (const [order, frames] of Object.entries(found.frames)) mapped[order] = Float64Array.from(at, (row) => (row < 0 ? 0 : frames[row]));
  return { edges, mapped };
}
// Single steps if there are not more than `most`, else what is mapped at the end of each of `bins`.
function memoryInSight(most, bins) {
  if (!S.rows) return reportedMemory();
  const found = levels(chosenDomid()), [first, end] = rowsInSight(found.times);
  if (end - first > most) return levelsAt(found, evenEdges(bins), false);
  const steps = found.times.subarray(first, end);
  return levelsAt(found, Float64Array.from(new Set([state.t0, ...steps, state.t1])), true);
}
function reportedMemory() {
  const sections = reportedSeries(), mapped = {};
  if (!sections.length) return null;
  for (const s of sections) for (const [order, values] of Object.entries(s.mapped)) {
    const out = (mapped[order] = mapped[order] || new Float64Array(values.length));
    for (let i = 0; i < values.length; i++) out[i] += values[i];
  }
  return { edges: sections[0].edges, mapped };
}
const reportedSeries = () => (state.domid ? [R.domains[state.domid]] : Object.values(R.domains)).filter((d) => d && d.series).map((d) => d.series);
// Of what is mapped in each bin, the share in superpages; NaN where nothing is.
function shareOf({ edges, mapped }) {
  const orders = Object.entries(mapped);
  return Float64Array.from({ length: edges.length - 1 }, (_, i) => {
    let large = 0, every = 0;
    for (const [order, values] of orders) { every += values[i]; if (order >= 9) large += values[i]; }
    return every ? large / every : NaN;
  });
}

// What happened in each bin of equal width; of a table with a sample each row stands for others.
function lanesInSight(edges) {
  const domid = chosenDomid(), nr = edges.length - 1, per = nr / (edges[nr] - edges[0]);
  const lanes = Object.fromEntries(LANES.map((name) => [name, { edges, values: new Float64Array(nr) }]));
  const each = (table, add) => {
    const [first, end] = table.rows ? rowsInSight(table.time) : [0, 0];
    for (let i = first; i < end; i++) {
      if (domid >= 0 && table.domid[i] !== domid) continue;
      const bin = Math.min(nr - 1, Math.floor((table.time[i] - edges[0]) * per));
      add(i, (name, n) => (lanes[name].values[bin] += n));
    }
  };
  each(U, (i, put) => { put("updates", U.stands[i]); if (U.shatters[i]) put("shatters", U.brokeEach); });
  each(E, (i, put) => { const name = EVENT_LANES[D.events[E.event[i]]]; if (name) put(name, E.stands[i]); });
  each(C, (i, put) => { put("populate_calls", C.stands[i]); put("extents", C.asked[i] * C.stands[i]); if (C.fell[i]) put("fallbacks", 1); });
  // Of a part of a xentrace nobody can tell which call an update belongs to; the report could.
  if (!C.rows) for (const name of ["populate_calls", "extents"]) lanes[name] = seriesSum(name) || lanes[name];
  if (!D.flagged) lanes.shatters = seriesSum("shatters") || lanes.shatters;
  return lanes;
}
const binWidth = (lanes) => Math.round((state.t1 - state.t0) / (lanes.updates.edges.length - 1));
// The lanes with anything in them in the whole run, so that zooming leaves each where it was.
const laneCache = new Map();
function lanesUsed() {
  if (!laneCache.has(state.domid)) {
    const fell = C.rows && C.fell.some((v, i) => v && (state.domid === "" || C.domid[i] === chosenDomid()));
    laneCache.set(state.domid, LANES.filter((name) => (name === "fallbacks" ? fell : (seriesSum(name) || { values: [] }).values.some((v) => v))));
  }
  return laneCache.get(state.domid);
}
