// The domains beside one another.

const mapsNow = (d) => {
  const found = {};
  for (const [order, kinds] of Object.entries(d.final_extents || {})) {
    for (const [kind, frames] of Object.entries(kinds)) if (kind !== "populate_on_demand") found[order] = (found[order] || 0) + frames;
  }
  return found;
};
const FLEET = [
  ["domain", (d, id) => Number(id), (v) => String(v)],
  ["mapped at the end", (d) => sum(mapsNow(d)), memory],
  ["in superpages", (d) => largeShare(mapsNow(d)), (v) => percent(v)],
  ["p2m updates", (d) => Object.values(d.p2m_updates || {}).reduce((n, kinds) => n + sum(kinds), 0), count],
  ["shatters", (d) => sum(d.shatters), count],
  ["populate calls", (d) => (d.populate ? d.populate.calls : 0), count],
  ["fallbacks", (d) => (d.populate ? sum(d.populate.fallbacks) : 0), count],
  ["faults", (d) => d.nested_faults || 0, count],
  ["PoD populated", (d) => sum(d.pod_populate), count],
  ["splintered", (d) => d.pod_superpage_splinter || 0, count],
  ["reclaimed", (d) => sum(d.pod_zero_reclaim), count],
];
const UNTOLD = new Set(["populate calls", "fallbacks"]); // of a domain without a populate section: no number
const fleetSort = { at: 0, down: false };
let fleetRows = null;
let fleetDrawn = "";

function largeShare(found) {
  const every = sum(found);
  return every ? Object.entries(found).reduce((n, [o, frames]) => n + (o >= 9 ? frames : 0), 0) / every : 0;
}
function drawFleet() {
  $("fleet").hidden = domids.length < 2;
  $("fleet-title").textContent = `${isWhole() ? "" : "of the whole run; "}click one to see it alone; line: share in superpages, ▼ shatters`;
  const look = `${state.domid} ${fleetSort.at} ${fleetSort.down} ${$("fleet-table").clientWidth}`;
  if ($("fleet").hidden || look === fleetDrawn) return;
  fleetDrawn = look;
  fleetRows = fleetRows || domids.map((id) => ({ id, d: R.domains[id], values: FLEET.map(([, get]) => get(R.domains[id], id)) }));
  const shown = FLEET.map((_, i) => i < 5 || fleetRows.some((row) => row.values[i]));
  const tops = FLEET.map((_, i) => Math.max(1e-9, ...fleetRows.map((row) => row.values[i])));
  const rows = [...fleetRows].sort((a, b) => (b.values[fleetSort.at] - a.values[fleetSort.at]) * (fleetSort.down ? 1 : -1) || a.id - b.id);
  const heads = FLEET.map(([name], i) => shown[i] && el("th", { class: i ? "" : "t", "aria-sort": sortWord(fleetSort.at === i, fleetSort.down) },
    el("button", { type: "button", onclick: () => { fleetSort.down = fleetSort.at === i ? !fleetSort.down : i > 0; fleetSort.at = i; drawFleet(); } }, name)));
  heads.splice(3, 0, el("th", { class: "t" }, "superpages over time"));
  const row = ({ id, d, values }) => {
    const cells = FLEET.map(([, , show], i) => shown[i] && (i === 0
      ? el("td", { class: "t" }, show(values[i]))
      : el("td", { class: "b" }, el("i", { style: `width:${(100 * values[i]) / tops[i]}%` }), el("span", {}, UNTOLD.has(FLEET[i][0]) && !d.populate ? "-" : show(values[i])))));
    cells[1] = el("td", { class: "b orders" }, orderBar(mapsNow(d), tops[1]), el("span", {}, memory(values[1])));
    cells.splice(3, 0, el("td", { class: "t spark" }, sparkline(d)));
    return [{ class: state.domid === id ? "on" : null }, cells];
  };
  listing("fleet-table", { heads: heads.filter(Boolean), rows, row, pick: (each) => setDomid(state.domid === each.id ? "" : each.id), height: 26 });
}
function orderBar(found, top) {
  return el("i", { class: "stack", style: `width:${(100 * sum(found)) / top}%` },
    Object.entries(found).sort((a, b) => b[0] - a[0]).map(([order, frames]) => el("u", { style: `flex:${frames};background:${colour(order)}`, title: `${orderName(order)} ${memory(frames)}` })));
}
function sparkline(d) {
  if (!d.series) return "";
  const c = shareOf({ edges: d.series.edges, mapped: d.series.mapped }), wide = 150, high = 18, step = Math.max(1, Math.floor(c.length / 75));
  let path = "";
  for (let i = 0, on = false; i < c.length; i += step) {
    if (Number.isNaN(c[i])) { on = false; continue; }
    path += `${on ? "L" : "M"}${((wide * i) / c.length).toFixed(1)} ${(high - 1.5 - c[i] * (high - 3)).toFixed(1)}`;
    on = true;
  }
  const broke = d.series.shatters.map((n, i) => (n ? (wide * i) / c.length : -1)).filter((x) => x >= 0);
  return svg("svg", { width: wide, height: high, "aria-hidden": "true" }, svg("path", { d: path, class: "cover" }), broke.filter((x, i) => !i || x - broke[i - 1] > 0).slice(0, 80).map((x) => svg("path", { d: `M${x.toFixed(1)} 5l-2.5 -4h5z`, class: "broke" })));
}
