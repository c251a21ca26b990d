// Where: gfns over time of one domain, or domains over time of many.

const BANDS = 64, MAP_BINS = 240, DOMAIN_ROWS = 120;
const SMALLEST = 8; // gfns of a band, inside one superpage
let map = null; // what was drawn last: bands from below, each with what it stands for

// The domain whose gfns are shown; "" while the map is of many domains.
function mapped() {
  if (state.domid) return state.domid;
  if (domids.length === 1) return domids[0];
  if (state.gfn < 0) return "";
  return busiestAt(state.gfn);
}
const busiest = new Map();
function busiestAt(gfn) {
  const base = superpage(gfn);
  if (busiest.has(base)) return busiest.get(base);
  const found = new Map();
  for (let i = 0; i < U.rows; i++) if (superpage(U.gfn[i]) === base) found.set(U.domid[i], (found.get(U.domid[i]) || 0) + 1);
  const best = [...found].sort((a, b) => b[1] - a[1])[0];
  busiest.set(base, best ? String(best[0]) : domids[0] || "");
  return busiest.get(base);
}
const weightOf = (i) => (state.metric !== "shatters" ? U.stands[i] : U.shatters[i] ? U.brokeEach : 0);
const countable = () => state.metric === "updates" || D.flagged;

// gfns at which bands begin, and their end: equally many of the superpages that are used.
const bandCache = new Map();
function bandEdges(domid) {
  const key = `${domid} ${state.g0} ${state.g1}`;
  if (bandCache.has(key)) return bandCache.get(key);
  const { heat } = R.domains[domid] || {};
  if (heat && state.g0 < 0) return heat.gfn_edges;
  const used = new Set(), number = Number(domid);
  for (let i = 0; i < U.rows; i++) {
    if (U.domid[i] !== number) continue;
    const base = superpage(U.gfn[i]);
    if (state.g0 < 0 || (base + 512 > state.g0 && base < state.g1)) used.add(base);
  }
  const sorted = [...used].sort((a, b) => a - b);
  let edges;
  if (sorted.length === 1) edges = Array.from({ length: 512 / SMALLEST + 1 }, (_, i) => sorted[0] + i * SMALLEST);
  else {
    const nr = Math.min(BANDS, sorted.length);
    edges = Array.from({ length: nr }, (_, i) => sorted[Math.floor((sorted.length * i) / nr)]);
    if (sorted.length) edges.push(sorted[sorted.length - 1] + 512);
  }
  bandCache.set(key, edges);
  return edges;
}
function mapOfGfns(domid) {
  const h = (R.domains[domid] || {}).heat;
  if (!countable()) {
    if (!h) return null;
    const rows = h.gfn_edges.slice(0, -1).map((low, i) => ({ low, high: h.gfn_edges[i + 1], cells: h[state.metric][i] }));
    const kept = state.g0 < 0 ? rows : rows.filter((row) => row.high > state.g0 && row.low < state.g1);
    return { domid, edges: h.edges, rows: kept };
  }
  const limits = bandEdges(domid);
  if (limits.length < 2) return null;
  const edges = evenEdges(MAP_BINS), rows = limits.slice(0, -1).map((low, i) => ({ low, high: limits[i + 1], cells: new Float64Array(edges.length - 1) }));
  const number = Number(domid), lowest = limits[0], end = limits[limits.length - 1];
  fillMap(edges, (i) => (U.domid[i] === number && U.gfn[i] >= lowest && U.gfn[i] < end ? rows[binAt(limits, U.gfn[i])] : null));
  return { domid, edges, rows };
}
function fillMap(edges, rowFor) {
  const nr = edges.length - 1, per = nr / (state.t1 - state.t0), [first, end] = rowsInSight(U.time);
  for (let i = first; i < end; i++) {
    const weight = weightOf(i), row = weight ? rowFor(i) : null;
    if (row) row.cells[Math.min(nr - 1, Math.floor((U.time[i] - state.t0) * per))] += weight;
  }
}
// A row a domain, or a few neighbours where there are more domains than pixels.
function mapOfDomains() {
  const shown = domids.filter((d) => R.domains[d].series), each = Math.ceil(shown.length / DOMAIN_ROWS);
  if (!shown.length) return null;
  const edges = countable() ? evenEdges(MAP_BINS) : R.domains[shown[0]].series.edges, rows = [], byDomid = new Map();
  shown.forEach((d, at) => {
    if (at % each === 0) rows.push({ of: d, domids: [], cells: new Float64Array(edges.length - 1) });
    const row = rows[rows.length - 1];
    row.domids.push(d);
    byDomid.set(Number(d), row);
    if (!countable()) R.domains[d].series[state.metric].forEach((n, i) => (row.cells[i] += n));
  });
  if (countable()) fillMap(edges, (i) => byDomid.get(U.domid[i]));
  return { domid: "", edges, rows };
}
function busiestOf(row) {
  if (row.domids.length === 1) return row.of;
  const made = new Map(), [first, end] = rowsInSight(U.time);
  for (let i = first; i < end; i++) made.set(U.domid[i], (made.get(U.domid[i]) || 0) + weightOf(i));
  return row.domids.reduce((best, d) => ((made.get(Number(d)) || 0) > (made.get(Number(best)) || 0) ? d : best), row.of);
}

function drawHeat() {
  $("heat").hidden = !U.of || !domids.some((d) => R.domains[d].series);
  if ($("heat").hidden) return;
  press(all("[data-metric]"), (button) => button.dataset.metric === state.metric);
  const domid = mapped();
  map = domid ? mapOfGfns(domid) : mapOfDomains();
  const zoomed = state.g0 >= 0 && domid ? `, ${hex(state.g0)} to ${hex(state.g1 - 1)}` : "";
  $("heat-title").textContent = domid
    ? `gfns of ${domainName(domid)}${zoomed}${state.gfn >= 0 ? `; marked: the superpage of ${hex(state.gfn)}` : "; click to look closer"}`
    : "domains by time; click one to see its gfns";
  $("gfns").hidden = state.g0 < 0 || !domid;
  const p = canvas("heat-plot", { right: 10 });
  if (!map || !map.rows.length) {
    timeAxis(p);
    p.g.fillStyle = colours.dim;
    p.g.textAlign = "left";
    p.g.fillText(domid ? `${domainName(domid)} has no p2m update here.` : "No domain has p2m updates.", p.left + 10, p.top + 20);
  } else drawCells(p);
  drawHottest(domid);
}
function drawCells(p) {
  const { rows, edges } = map, [a, b] = inSight(edges), { g } = p, tall = (p.bottom - p.top) / rows.length;
  let most = 0;
  for (const { cells } of rows) for (let i = a; i < b; i++) if (cells[i] > most) most = cells[i];
  timeAxis(p);
  const c = state.metric === "shatters" ? colours.red : colours.blue;
  clipped(p, () => {
    g.fillStyle = c;
    rows.forEach(({ cells }, at) => {
      const y = p.bottom - (at + 1) * tall;
      for (let i = a; i < b; i++) {
        if (!cells[i]) continue;
        const x = toX(p, edges[i]);
        g.globalAlpha = 0.3 + 0.7 * (Math.log1p(cells[i]) / Math.log1p(most));
        g.fillRect(x, y, Math.max(toX(p, edges[i + 1]) - x, 2), Math.max(tall - (tall > 4 ? 0.6 : 0), 1));
      }
    });
    g.globalAlpha = 1;
  });
  drawRowNames(p, rows, tall);
  const at = map.domid && state.gfn >= 0 ? rows.findIndex((row) => state.gfn >= row.low && state.gfn < row.high) : -1;
  if (at >= 0) {
    g.strokeStyle = colours.ink;
    g.lineWidth = 1.5;
    g.strokeRect(p.left, p.bottom - (at + 1) * tall - 1, p.right - p.left, Math.max(tall, 2) + 2);
  }
  const what = state.metric === "shatters" ? "shatter" : "update";
  $("heat-legend").replaceChildren(
    most ? `${most > 1 ? "1 to " : ""}${plural(most, what)} a cell ` : `no ${what} in sight `,
    el("i", { class: "ramp", style: `background:linear-gradient(90deg, color-mix(in srgb, ${c} 30%, transparent), ${c})` }),
  );
}
function drawRowNames(p, rows, tall) {
  const { g } = p, step = Math.max(1, Math.ceil(16 / tall));
  g.fillStyle = colours.dim;
  g.textAlign = "right";
  for (let at = 0; at < rows.length; at += step) {
    const y = p.bottom - (at + 0.5) * tall;
    g.fillText(map.domid ? hex(rows[at].low) : `d${rows[at].of}`, p.left - 8, y);
  }
}
function rowUnder(event) {
  if (!map || !map.rows.length) return null;
  const c = $("heat-plot"), y = event.clientY - c.getBoundingClientRect().top, bottom = c.clientHeight - BOTTOM;
  const at = Math.floor(((bottom - y) / (bottom - 8)) * map.rows.length);
  return at >= 0 && at < map.rows.length ? map.rows[at] : null;
}
function heatTip(t, event) {
  const row = rowUnder(event);
  if (!row) return "";
  const what = state.metric === "shatters" ? "shatter" : "update", n = row.cells[binAt(map.edges, t)] || 0;
  const last = row.of !== undefined && row.domids.length > 1 ? row.domids[row.domids.length - 1] : "";
  const where = row.of !== undefined ? (last ? `domains ${row.of} to ${last}; click for the one with the most` : domainName(row.of)) : `gfn ${hex(row.low)} to ${hex(row.high - 1)}`;
  return `${where}\nat ${moment(t)}\n${plural(n, what)}`;
}
// Domain, then its gfns, then one superpage, then its pages.
function clickHeat(event) {
  const row = rowUnder(event);
  if (!row) return;
  if (row.of !== undefined) setDomid(busiestOf(row));
  else if (row.high - row.low > 512) { state.g0 = row.low; state.g1 = row.high; redraw(); }
  else {
    state.gfn = row.low;
    if (row.high - row.low === 512 && countable()) { state.g0 = row.low; state.g1 = row.high; }
    redraw();
  }
}
function zoomGfns(top, bottom) {
  if (!map || !map.domid) return;
  const high = $("heat-plot").clientHeight - BOTTOM, nr = map.rows.length;
  const at = (y) => Math.max(0, Math.min(nr - 1, Math.floor(((high - y) / (high - 8)) * nr)));
  state.g0 = map.rows[at(bottom)].low;
  state.g1 = map.rows[at(top)].high;
}
function panGfns(share) {
  const domid = mapped();
  if (state.g0 < 0 || !domid) return false;
  const by = Math.max(512, superpage((state.g1 - state.g0) * Math.abs(share))) * Math.sign(share);
  if (state.g0 + by < 0) return true;
  state.g0 += by; state.g1 += by;
  redraw();
  return true;
}
