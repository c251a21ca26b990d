"use strict";
// Colours that stay apart for every kind of colour vision (Okabe and Ito).
const COLOURS = { 18: "#0072b2", 9: "#009e73", 10: "#009e73", 0: "#e69f00", toolstack: "#0072b2", allocator: "#009e73", p2m: "#e69f00", walker: "#cc79a7", client: "#8a94a0", transport: "#b9c1ca", shatters: "#d55e00", coverage: "#cc79a7", updates: "#56b4e9" };
const PALETTE = ["#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00", "#8a94a0", "#f0e442"];
const ORDER_NAMES = { 0: "4K", 9: "2M", 10: "4M", 18: "1G" };
const WHAT_COLOURS = { service: 1, queue: 0.55, idle: 0.25, transit: 0.35 };
const $ = (id) => document.getElementById(id);
const NONE = -1;

// ---- data ---------------------------------------------------------------------------------

async function unpack(text) {
  const raw = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}
async function column(packed, rows) {
  const out = new Float64Array(rows);
  if (!packed.width) return out.fill(packed.base);
  const buffer = await unpack(packed.data);
  const data = new ({ 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: Float64Array })[packed.width](buffer);
  let sum = packed.base;
  for (let i = 0; i < rows; i++) out[i] = packed.sum ? (sum += data[i]) : packed.base + data[i];
  return out;
}
async function frame(packed) {
  const names = Object.keys(packed.columns);
  const columns = await Promise.all(names.map((name) => column(packed.columns[name], packed.rows)));
  return Object.assign(Object.fromEntries(names.map((name, i) => [name, columns[i]])), { rows: packed.rows, of: packed.of });
}

let D, R, M, U, E, P, domids, edges;
const state = { t0: 0, t1: 1, domid: "", kind: "", gfn: NONE, row: NONE, metric: "updates", group: "messages", sort: "service", down: true };

// ---- words --------------------------------------------------------------------------------

const count = (n) => Math.round(n).toLocaleString("en-US");
const hex = (n) => "0x" + n.toString(16);
function time(ticks) {
  if (!R.ticks_per_s) return count(ticks) + (Math.abs(ticks) === 1 ? " step" : " steps");
  const s = ticks / R.ticks_per_s, a = Math.abs(s);
  if (a >= 1 || a === 0) return trim(s) + " s";
  if (a >= 1e-3) return trim(s * 1e3) + " ms";
  return trim(s * 1e6) + " µs";
}
const trim = (x) => String(Number(x.toPrecision(4)));
function bytes(n) { return n >= 1 << 20 ? trim(n / (1 << 20)) + " MiB" : n >= 1024 ? trim(n / 1024) + " KiB" : n + " B"; }
const memory = (frames) => (frames >= 1 << 18 ? trim(frames / (1 << 18)) + " GiB" : trim(frames / 256) + " MiB");
const service = (name) => name.split("/")[0];
const colour = (name, i = 0) => COLOURS[name] || PALETTE[i % PALETTE.length];
const orderName = (o) => ORDER_NAMES[o] || "order " + o;
const idOf = (i) => D.names[M.src[i]] + "#" + M.seq[i];
const domainName = (d) => "domain " + d;

// Everything that comes from the trace goes in as text, never as HTML.
function el(tag, attributes = {}, ...children) {
  const made = tag === "svg" || el.svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child != null));
  return made;
}
function svg(tag, attributes, ...children) { el.svg = true; try { return el(tag, attributes, ...children); } finally { el.svg = false; } }
const empty = (text) => el("p", { class: "empty" }, text);
function legend(id, items) { $(id).replaceChildren(...items.map(([name, c]) => el("span", {}, el("i", { style: `background:${c}` }), name))); }

// ---- plots --------------------------------------------------------------------------------

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function canvas(id) {
  const c = $(id), ratio = window.devicePixelRatio || 1, w = c.clientWidth, h = c.clientHeight;
  if (c.width !== Math.round(w * ratio) || c.height !== Math.round(h * ratio)) { c.width = Math.round(w * ratio); c.height = Math.round(h * ratio); }
  const g = c.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, w, h);
  g.font = "11px system-ui, sans-serif";
  return { c, g, w, h, left: 66, right: w - 10, top: 8, bottom: h - 20 };
}
const toX = (p, t) => p.left + ((t - state.t0) / (state.t1 - state.t0)) * (p.right - p.left);
const toT = (p, x) => state.t0 + ((x - p.left) / (p.right - p.left)) * (state.t1 - state.t0);
function axis(p, top, unit) {
  const { g } = p;
  g.strokeStyle = css("--grid"); g.fillStyle = css("--dim"); g.textAlign = "right"; g.textBaseline = "middle";
  for (let i = 0; i <= 2; i++) {
    const y = p.bottom - ((p.bottom - p.top) * i) / 2;
    g.beginPath(); g.moveTo(p.left, y); g.lineTo(p.right, y); g.stroke();
    if (unit) g.fillText(unit((top * i) / 2), p.left - 6, y);
  }
  g.textBaseline = "top";
  for (let i = 0; i <= 4; i++) {
    g.textAlign = i === 0 ? "left" : i === 4 ? "right" : "center";
    g.fillText(time(state.t0 + ((state.t1 - state.t0) * i) / 4 - R.span[0]), p.left + ((p.right - p.left) * i) / 4, p.bottom + 5);
  }
}
// Bins that are in sight: [first, end).
function inSight(e) {
  let a = 0, b = e.length - 1;
  while (a < b - 1 && e[a + 1] <= state.t0) a++;
  while (b > a + 1 && e[b - 1] >= state.t1) b--;
  return [a, b];
}
function stacked(p, e, layers, top, step) {
  const { g } = p, [a, b] = inSight(e);
  const base = new Float64Array(b - a);
  g.save(); g.beginPath(); g.rect(p.left, 0, p.right - p.left, p.h); g.clip();
  for (const [c, values] of layers) {
    g.fillStyle = c;
    for (let i = a; i < b; i++) {
      const v = values[i] || 0;
      if (!v) continue;
      const x = toX(p, e[i]), w = Math.max(toX(p, e[i + 1]) - x - (step ? 0 : 0.5), 0.8);
      const y = p.bottom - ((base[i - a] + v) / top) * (p.bottom - p.top);
      g.fillRect(x, y, w + (step ? 0.6 : 0), Math.max((v / top) * (p.bottom - p.top), 0.7));
      base[i - a] += v;
    }
  }
  g.restore();
}
function line(p, e, values, top, c) {
  const { g } = p, [a, b] = inSight(e);
  g.save(); g.beginPath(); g.rect(p.left, 0, p.right - p.left, p.h); g.clip();
  g.strokeStyle = c; g.lineWidth = 2; g.beginPath();
  for (let i = a; i < b; i++) {
    const y = p.bottom - (values[i] / top) * (p.bottom - p.top);
    g.lineTo(toX(p, e[i]), y); g.lineTo(toX(p, e[i + 1]), y);
  }
  g.stroke(); g.restore();
}
function ticks(p, e, values, c) {
  const { g } = p, [a, b] = inSight(e);
  g.fillStyle = c;
  for (let i = a; i < b; i++) if (values[i]) {
    const x = toX(p, (e[i] + e[i + 1]) / 2);
    if (x >= p.left && x <= p.right) { g.beginPath(); g.moveTo(x, p.top + 7); g.lineTo(x - 4, p.top - 1); g.lineTo(x + 4, p.top - 1); g.fill(); }
  }
}
const total = (layers, i) => layers.reduce((sum, [, values]) => sum + (values[i] || 0), 0);
function highest(layers, e) { const [a, b] = inSight(e); let top = 0; for (let i = a; i < b; i++) top = Math.max(top, total(layers, i)); return top || 1; }

let activity;
function makeActivity() {
  const sections = Object.values(R.domains).filter((d) => d.series);
  edges = R.rate && R.rate.total.length ? R.rate.edges : sections.length ? sections[0].series.edges : R.span;
  const add = (name) => { const out = []; for (const d of sections) d.series[name].forEach((v, i) => (out[i] = (out[i] || 0) + v)); return out; };
  activity = { edges, layers: [], names: [], seriesEdges: sections.length ? sections[0].series.edges : edges, shatters: add("shatters"), updates: add("updates") };
  if (R.rate && R.rate.total.length) {
    activity.what = "messages";
    Object.entries(R.rate.by_service).forEach(([name, values], i) => { activity.layers.push([colour(name, i), values]); activity.names.push([name, colour(name, i)]); });
  } else {
    activity.what = "p2m updates";
    activity.layers.push([COLOURS.updates, activity.updates]); activity.names.push(["p2m updates", COLOURS.updates]);
  }
  if (activity.shatters.some((v) => v)) activity.names.push(["shatters", COLOURS.shatters]);
}
let brush = null;
function drawOverview() {
  const p = canvas("overview-plot"), top = highest(activity.layers, activity.edges);
  axis(p, top, count);
  stacked(p, activity.edges, activity.layers, top, false);
  ticks(p, activity.seriesEdges, activity.shatters, COLOURS.shatters);
  if (brush) { p.g.fillStyle = css("--bar"); p.g.fillRect(Math.min(brush[0], brush[1]), p.top, Math.abs(brush[1] - brush[0]), p.bottom - p.top); }
  const whole = state.t0 === R.span[0] && state.t1 === R.span[1];
  $("zoomed").textContent = whole ? `${activity.what} a bin; drag to zoom in` : `${time(state.t0 - R.span[0])} to ${time(state.t1 - R.span[0])}, of ${time(R.span[1] - R.span[0])}`;
}

// ---- views --------------------------------------------------------------------------------

function drawHead() {
  $("source").textContent = R.source.split("/").pop();
  const facts = [R.format === "xentrace" ? "real Xen (xentrace)" : `shatterproof, ${(R.header || {}).runtime || ""} runtime`, `${count(R.records)} records`, time(R.span[1] - R.span[0]), domids.length === 1 ? "1 domain" : `${domids.length} domains`];
  if ((R.header || {}).host && R.header.host.paging) facts.push(R.header.host.paging + " tables");
  $("facts").textContent = facts.filter(Boolean).join(" · ");
  const notes = [];
  if (R.truncated) notes.push("The file was cut off; this is what it holds up to its last whole block.");
  if (R.lost) notes.push(`${count(R.lost)} records were lost: not all that happened is here.`);
  if (M.rows < M.of) notes.push(`Of ${count(M.of)} messages the slowest hypercalls are here with all that they caused, and a sample of the rest (${count(M.rows)}); figures and plots are of all. profile --between or --domid makes a page of a part.`);
  $("notice").hidden = !notes.length;
  $("notice").textContent = notes.join(" ");
  const pick = $("domid");
  pick.replaceChildren(el("option", { value: "" }, "all"), ...domids.map((d) => el("option", { value: d }, d)));
  pick.value = state.domid;
}
const shown = () => state.domid || domids[0] || "";

function drawDomain() {
  const id = shown(), d = R.domains[id];
  $("domain").hidden = !d || !d.series;
  if (!d || !d.series) return;
  const s = d.series, orders = Object.keys(s.mapped).sort((a, b) => b - a), layers = orders.map((o) => [COLOURS[o] || PALETTE[3], s.mapped[o]]);
  $("domain-name").textContent = domainName(id);
  const p = canvas("domain-plot"), top = highest(layers, s.edges);
  axis(p, top, (v) => memory(v));
  stacked(p, s.edges, layers, top, true);
  line(p, s.edges, s.coverage, 1.02, COLOURS.coverage);
  ticks(p, s.edges, s.shatters, COLOURS.shatters);
  legend("domain-legend", [...orders.map((o) => [orderName(o), COLOURS[o]]), ["share in superpages (0 to 100 %)", COLOURS.coverage], ["shatters", COLOURS.shatters]]);
  const sum = (o) => Object.values(o || {}).reduce((a, b) => a + b, 0), facts = [];
  const updates = Object.entries(d.p2m_updates).sort((a, b) => b[0] - a[0]).map(([o, kinds]) => `${count(sum(kinds))} × ${orderName(o)}`);
  facts.push(["p2m updates", updates.join(", ") || "none"], ["shatters", Object.entries(d.shatters).filter(([, n]) => n).map(([step, n]) => `${count(n)} × ${step.split("->").map(orderName).join(" → ")}`).join(", ") || "none"]);
  if (d.populate && d.populate.calls) facts.push(["populate calls", `${count(d.populate.calls)}, extents a call p50 ${count(d.populate.extents_per_call.p50)}, max ${count(d.populate.extents_per_call.max)}`], ["fallbacks in the ladder", Object.entries(d.populate.fallbacks).map(([step, n]) => `${n} × ${step.split("->").map(orderName).join(" → ")}`).join(", ") || "none"]);
  if (d.nested_faults) facts.push(["nested faults", count(d.nested_faults)]);
  if (sum(d.decrease_reservation)) facts.push(["decrease_reservation", Object.entries(d.decrease_reservation).map(([o, n]) => `${count(n)} × ${orderName(o)}`).join(", ")]);
  if (sum(d.pod_populate) || d.pod_superpage_splinter) facts.push(["populate on demand", `${count(sum(d.pod_populate))} populated, ${count(d.pod_superpage_splinter)} splintered, ${count(sum(d.pod_zero_reclaim))} reclaimed`]);
  $("domain-facts").replaceChildren(...facts.map(([name, text]) => el("span", {}, name + " ", el("b", {}, text))));
}

function drawHeat() {
  const id = shown(), d = R.domains[id], h = d && d.heat;
  $("heat").hidden = !d || !d.series;
  if (!d || !d.series) return;
  for (const button of document.querySelectorAll("[data-metric]")) button.setAttribute("aria-pressed", button.dataset.metric === state.metric);
  $("heat-title").textContent = `gfn by time, ${domainName(id)}${state.gfn >= 0 ? ", superpage of " + hex(state.gfn) : ""}`;
  const p = canvas("heat-plot");
  if (!h) { p.g.fillStyle = css("--dim"); p.g.fillText("No map: this domain has no p2m updates, or 64 others have more.", p.left, 40); }
  else {
    const cells = h[state.metric], [a, b] = inSight(h.edges), bands = cells.length;
    let top = 0;
    for (const row of cells) for (let i = a; i < b; i++) top = Math.max(top, row[i]);
    axis(p, 1, null);
    p.g.save(); p.g.beginPath(); p.g.rect(p.left, 0, p.right - p.left, p.h); p.g.clip();
    cells.forEach((row, band) => {
      const y = p.bottom - ((band + 1) / bands) * (p.bottom - p.top), height = (p.bottom - p.top) / bands;
      for (let i = a; i < b; i++) if (row[i]) {
        p.g.globalAlpha = 0.25 + 0.75 * (Math.log1p(row[i]) / Math.log1p(top));
        p.g.fillStyle = state.metric === "shatters" ? COLOURS.shatters : css("--accent");
        const x = toX(p, h.edges[i]);
        p.g.fillRect(x, y, Math.max(toX(p, h.edges[i + 1]) - x, 1.2), Math.max(height - 0.4, 0.8));
      }
    });
    p.g.restore();
    const marked = bandOf(h, state.gfn);
    if (marked >= 0) { p.g.strokeStyle = COLOURS.shatters; p.g.lineWidth = 1.5; p.g.strokeRect(p.left, p.bottom - ((marked + 1) / bands) * (p.bottom - p.top), p.right - p.left, Math.max((p.bottom - p.top) / bands, 2)); }
    p.g.fillStyle = css("--dim"); p.g.textAlign = "right"; p.g.textBaseline = "middle";
    for (const f of [0, 0.5, 1]) p.g.fillText(hex(h.gfn_edges[Math.round(f * bands)]), p.left - 6, p.bottom - f * (p.bottom - p.top) + (f === 0 ? -5 : f === 1 ? 5 : 0));
  }
  const hottest = (d.hottest || []).filter((x) => x.updates > 0);
  $("hottest").replaceChildren(el("small", {}, hottest.length ? "most updated superpages:" : ""), ...hottest.map((x) => el("button", { type: "button", class: "mono", "aria-pressed": String(state.gfn >= 0 && state.gfn >> 9 === x.gfn >> 9), title: `${count(x.updates)} updates, ${count(x.shatters)} shatters`, onclick: () => pickGfn(x.gfn) }, `${hex(x.gfn)} ${count(x.updates)}${x.shatters ? " ⚡" + count(x.shatters) : ""}`)));
}
function bandOf(h, gfn) {
  if (gfn < 0) return -1;
  let at = -1;
  for (let i = 0; i < h.gfn_edges.length - 1; i++) if (gfn >= h.gfn_edges[i]) at = i;
  return gfn < h.gfn_edges[h.gfn_edges.length - 1] ? at : -1;
}

const COLUMNS = [["count", (k) => k.count, count], ["bytes", (k) => k.bytes, bytes], ["p50", (k) => k.p50, time], ["p90", (k) => k.p90, time], ["p99", (k) => k.p99, time], ["max", (k) => k.max, time], ["queued", (k) => k.queue.total, time], ["service", (k) => k.service.total, time], ["awaiting", (k) => k.awaiting.total, time], ["locks", (k) => k.lock.total, time]];
function drawKinds() {
  const rows = Object.entries(R[state.group] || {});
  $("kinds").hidden = !Object.keys(R.messages || {}).length;
  if ($("kinds").hidden) return;
  for (const button of document.querySelectorAll("[data-group]")) button.setAttribute("aria-pressed", button.dataset.group === state.group);
  const value = (COLUMNS.find(([name]) => name === state.sort) || COLUMNS[7])[1];
  rows.sort((a, b) => (state.sort === "name" ? (a[0] < b[0] ? -1 : 1) : value(b[1]) - value(a[1])) * (state.down ? 1 : -1));
  const tops = COLUMNS.map(([, get]) => Math.max(1e-9, ...rows.map(([, k]) => get(k))));
  const head = (name, text) => el("th", { class: name === "name" ? "t" : false, "aria-sort": state.sort === name ? (state.down ? "descending" : "ascending") : false }, el("button", { type: "button", onclick: () => { state.down = state.sort === name ? !state.down : true; state.sort = name; drawKinds(); } }, text + (state.sort === name ? (state.down ? " ↓" : " ↑") : "")));
  const body = rows.map(([name, k]) => el("tr", { class: state.kind === name ? "on" : false, onclick: () => { if (state.group === "messages") { state.kind = state.kind === name ? "" : name; redraw(); } } }, el("td", { class: "t mono" }, name), COLUMNS.map(([, get, show], i) => el("td", { class: "b" }, el("i", { style: `width:${(100 * get(k)) / tops[i]}%` }), el("span", {}, get(k) ? show(get(k)) : "0")))));
  $("kinds-table").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, head("name", state.group === "messages" ? "kind" : "service"), COLUMNS.map(([name]) => head(name, name)))), el("tbody", {}, body)));
  drawLatency();
}
// How the latency of the selected kind is spread, on a logarithmic scale.
function drawLatency() {
  const box = $("latency"), kind = D.kinds.indexOf(state.kind);
  box.replaceChildren();
  if (kind < 0) return;
  const values = [];
  for (let i = 0; i < M.rows; i++) if (M.kind[i] === kind && M.lasted[i]) values.push(M.queue[i] + M.lasted[i] - 1);
  if (!values.length) { box.append(empty(`No answered ${state.kind} in this page.`)); return; }
  const low = Math.max(1, Math.min(...values.slice(0, 1e5))), high = Math.max(low + 1, ...values.slice(0, 1e5)), bins = new Array(48).fill(0);
  for (const v of values) bins[Math.min(47, Math.max(0, Math.floor((48 * Math.log(Math.max(v, low) / low)) / Math.log(high / low))))]++;
  const top = Math.max(...bins);
  box.append(el("small", {}, `latency of ${state.kind}, ${count(values.length)} messages, ${time(low)} to ${time(high)} (logarithmic)`), svg("svg", { viewBox: "0 0 480 60", width: "100%", height: "64", preserveAspectRatio: "none", role: "img", "aria-label": "Latency distribution" }, bins.map((n, i) => svg("rect", { x: i * 10, width: 9, y: 60 - (58 * n) / top, height: (58 * n) / top, fill: COLOURS[18] }, svg("title", {}, `${count(n)} of about ${time(low * Math.pow(high / low, (i + 0.5) / 48))}`)))));
}

function drawPaths() {
  const paths = R.critical_path ? [R.critical_path.run, ...R.critical_path.slowest].filter(Boolean) : [];
  $("paths").hidden = !paths.length;
  $("paths-list").replaceChildren(...paths.map((path) => {
    const whole = Math.max(path.end - path.start, 1), parts = {};
    for (const s of path.segments) { const key = service(s.component) + "|" + s.what; parts[key] = (parts[key] || 0) + s.end - s.start; }
    const many = path.segments.length > 160;
    const list = many ? Object.entries(parts).map(([key, ticks]) => [...key.split("|"), ticks, ""]) : path.segments.map((s) => [service(s.component), s.what, s.end - s.start, `\n${s.id} ${s.kind}\n${s.component}, at ${time(s.start - path.start)}`]);
    const row = rowOf(path.id);
    return el("div", { class: "path" }, el("div", { class: "name mono", title: path.id, onclick: () => row >= 0 && pickRow(row) }, path.id, el("small", {}, [path.kind, path.domid >= 0 && path.kind ? domainName(path.domid) : "", time(whole), `${count(path.messages)} messages`].filter(Boolean).join(" · "))),
      el("div", { class: "stripe" }, list.map(([who, what, ticks, more], i) => el("i", { style: `flex:${ticks} 0 0;background:${colour(who, i)};opacity:${WHAT_COLOURS[what] || 1}`, "data-tip": `${who}: ${what} ${time(ticks)} (${trim((100 * ticks) / whole)} %)${more}` }))),
      el("div", { class: "won" }, Object.entries(path.if_free).slice(0, 5).map(([name, ticks]) => el("span", {}, el("i", { style: `display:inline-block;width:9px;height:9px;border-radius:2px;margin:0 5px 0 ${0}px;background:${colour(name)}` }), `${name} ${time(ticks)} (${trim((100 * ticks) / whole)} %)   `))));
  }));
}

function drawContention() {
  const c = R.contention;
  $("contention").hidden = !c;
  if (!c) return;
  const boxes = [...c.mailboxes].sort((a, b) => b.wait_total - a.wait_total);
  const body = $("contention-body");
  body.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ["mailbox", "messages", "waited", "p99", "longest queue", "at"].map((h, i) => el("th", { class: i ? false : "t" }, h)))), el("tbody", {}, boxes.map((b) => el("tr", { onclick: () => zoomAround(b.at) }, el("td", { class: "t" }, `${b.service} ${b.shard === 65535 ? "" : "shard " + b.shard}`), el("td", {}, count(b.messages)), el("td", {}, time(b.wait_total)), el("td", {}, time(b.wait_p99)), el("td", {}, count(b.longest)), el("td", {}, time(b.at - R.span[0])))))));
  body.append(c.locks.length ? el("table", {}, el("thead", {}, el("tr", {}, ["lock of", "waits", "in all", "longest"].map((h, i) => el("th", { class: i ? false : "t" }, h)))), el("tbody", {}, c.locks.slice(0, 8).map((l) => el("tr", {}, el("td", { class: "t mono" }, l.name), el("td", {}, count(l.waits)), el("td", {}, time(l.total)), el("td", {}, time(l.max)))))) : empty("Nobody waited for a lock."));
  const fair = Object.entries(c.fairness.domains);
  if (fair.length > 1) {
    fair.sort((a, b) => a[1].mean - b[1].mean);
    const [best, worst] = [fair[0], fair[fair.length - 1]];
    body.append(el("p", {}, `Fairness between domains: Jain's index ${trim(c.fairness.jain)}; a request took ${time(best[1].mean)} on average for ${domainName(best[0])}, ${time(worst[1].mean)} for ${domainName(worst[0])}.`));
  }
}

function drawHypercalls() {
  const calls = Object.entries(R.hypercalls || {});
  $("hypercalls").hidden = !calls.length;
  calls.sort((a, b) => b[1].updates - a[1].updates || b[1].count - a[1].count);
  const sizes = ["0", "1", "2-8", "9-64", "65-512", "513+"];
  $("hypercalls-body").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ["hypercall", "calls", "updates", ...sizes].map((h, i) => el("th", { class: i ? false : "t" }, h)))), el("tbody", {}, calls.map(([name, c]) => el("tr", {}, el("td", { class: "t mono" }, name), el("td", {}, count(c.count)), el("td", {}, count(c.updates)), sizes.map((s) => el("td", {}, c.runs[s] ? count(c.runs[s]) : "")))))));
}

function drawPcpus() {
  $("pcpus").hidden = !P.rows;
  if (!P.rows) return;
  const p = canvas("pcpus-plot"), cpus = [...new Set(P.cpu)].sort((a, b) => a - b), height = (p.bottom - p.top) / cpus.length;
  axis(p, 1, null);
  p.g.save(); p.g.beginPath(); p.g.rect(p.left, 0, p.right - p.left, p.h); p.g.clip();
  const seen = new Map();
  for (let i = 0; i < P.rows; i++) {
    if (P.end[i] < state.t0 || P.start[i] > state.t1 || P.domid[i] >= 0x7ff0) continue;
    if (!seen.has(P.domid[i])) seen.set(P.domid[i], P.domid[i] === 0 ? "#8a94a0" : PALETTE[(P.domid[i] - 1) % 6]);
    const x = toX(p, P.start[i]);
    p.g.fillStyle = seen.get(P.domid[i]);
    p.g.fillRect(x, p.top + cpus.indexOf(P.cpu[i]) * height + 2, Math.max(toX(p, P.end[i]) - x, 0.8), height - 4);
  }
  p.g.restore();
  p.g.fillStyle = css("--dim"); p.g.textAlign = "right"; p.g.textBaseline = "middle";
  cpus.forEach((cpu, i) => p.g.fillText("pcpu " + cpu, p.left - 6, p.top + (i + 0.5) * height));
  const busy = cpus.map((cpu) => `pcpu ${cpu} busy ${trim(100 * ((R.pcpus || {})[cpu] || { busy: 0 }).busy)} %`);
  legend("pcpus-legend", [...[...seen].sort((a, b) => a[0] - b[0]).map(([d, c]) => ["d" + d, c]), [busy.join(", "), "transparent"]]);
}

// ---- rows ---------------------------------------------------------------------------------

const LISTED = 250;
function ended(i) { return M.lasted[i] ? M.started[i] + M.lasted[i] - 1 : M.started[i]; }
function touches(gfn, nr, order) { const base = state.gfn & ~511, first = gfn, last = gfn + Math.max(1, nr) * Math.pow(2, Math.max(order, 0)); return first < base + 512 && last > base; }
function drawMessages() {
  $("messages").hidden = !M.rows;
  if (!M.rows) return;
  const found = [], kind = state.kind ? D.kinds.indexOf(state.kind) : NONE, domid = state.domid === "" ? NONE : Number(state.domid);
  let nr = 0;
  for (let i = 0; i < M.rows; i++) {
    if (M.started[i] > state.t1 || ended(i) < state.t0) continue;
    if (kind >= 0 && M.kind[i] !== kind) continue;
    if (domid >= 0 && M.domid[i] !== domid) continue;
    if (state.gfn >= 0 && !(M.gfn[i] && touches(M.gfn[i] - 1, M.nr[i], M.order[i]))) continue;
    nr++;
    if (found.length < LISTED) found.push(i);
  }
  if (state.row >= 0 && !found.includes(state.row)) found.unshift(state.row);
  $("messages-count").textContent = `${count(nr)} in sight${nr > found.length ? `, the first ${LISTED} listed` : ""}${state.kind ? `, ${state.kind}` : ""}${state.gfn >= 0 ? `, naming the superpage of ${hex(state.gfn)}` : ""}`;
  const row = (i) => el("tr", { class: state.row === i ? "on" : false, onclick: () => pickRow(i) }, el("td", {}, time(M.started[i] - R.span[0])), el("td", { class: "t mono" }, idOf(i)), el("td", { class: "t mono" }, D.names[M.dst[i]]), el("td", { class: "t" }, D.kinds[M.kind[i]]), el("td", {}, M.domid[i] >= 0 ? M.domid[i] : ""), el("td", { class: "t" }, detail(i)), el("td", {}, bytes(M.bytes[i])), el("td", {}, time(M.queue[i])), el("td", {}, time(M.busy[i])), el("td", {}, M.lasted[i] ? time(M.queue[i] + M.lasted[i] - 1) : "never answered"));
  $("messages-table").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ["began", "message", "to", "kind", "domid", "", "size", "queued", "busy", "latency"].map((h, i) => el("th", { class: [1, 2, 3, 5].includes(i) ? "t" : false }, h)))), el("tbody", {}, found.map(row))));
}
function detail(i) {
  const words = [];
  if (M.order[i] >= 0) words.push(orderName(M.order[i]));
  if (M.nr[i] >= 0) words.push("×" + count(M.nr[i]));
  if (M.gfn[i]) words.push("gfn " + hex(M.gfn[i] - 1));
  if (M.rc[i]) words.push("rc " + M.rc[i]);
  return words.join(" ");
}
function drawUpdates() {
  $("updates").hidden = !U.rows;
  if (!U.rows) return;
  const found = [], domid = state.domid === "" ? NONE : Number(state.domid);
  let nr = 0;
  for (let i = 0; i < U.rows; i++) {
    if (U.time[i] < state.t0 || U.time[i] > state.t1) continue;
    if (domid >= 0 && U.domid[i] !== domid) continue;
    if (state.gfn >= 0 && !touches(U.gfn[i], 1, U.order[i])) continue;
    nr++;
    if (found.length < LISTED) found.push(i);
  }
  const sample = U.rows < U.of ? ` (of every ${Math.ceil(U.of / U.rows)}th that is in this page)` : "";
  $("updates-count").textContent = `${count(nr)} in sight${sample}${nr > LISTED ? `, the first ${LISTED} listed` : ""}${state.gfn >= 0 ? `, in the superpage of ${hex(state.gfn)}` : "; search a gfn to see one superpage's story"}`;
  $("updates-table").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ["at", "domid", "order", "type", "gfn"].map((h, i) => el("th", { class: i > 1 ? "t" : false }, h)))), el("tbody", {}, found.map((i) => el("tr", { onclick: () => pickGfn(U.gfn[i]) }, el("td", {}, time(U.time[i] - R.span[0])), el("td", {}, U.domid[i]), el("td", { class: "t" }, orderName(U.order[i])), el("td", { class: "t" }, D.types[U.type[i]] || "type " + U.type[i]), el("td", { class: "t mono" }, hex(U.gfn[i])))))));
}

// ---- sequence -----------------------------------------------------------------------------

let children = null;
const ARROWS = 120;
function treeOf(row) {
  if (!children) { children = new Map(); for (let i = 0; i < M.rows; i++) if (M.parent[i]) { const up = M.parent[i] - 1; if (!children.has(up)) children.set(up, []); children.get(up).push(i); } }
  const found = [row], waiting = [row];
  while (waiting.length && found.length < ARROWS) for (const child of children.get(waiting.pop()) || []) { found.push(child); if (!M.isReply[child]) waiting.push(child); }
  const sent = (i) => M.started[i] - M.queue[i] - M.transit[i];
  return found.slice(0, ARROWS).sort((a, b) => sent(a) - sent(b) || M.started[a] - M.started[b]);
}
function rootOf(row) { return M.isReply[row] && M.asked[row] ? M.asked[row] - 1 : row; }
let diagram = "";
function drawSequence() {
  $("sequence").hidden = state.row < 0;
  if (state.row < 0) return;
  const root = rootOf(state.row), rows = treeOf(root), names = [];
  for (const i of rows) for (const n of [D.names[M.src[i]], D.names[M.dst[i]]]) if (!names.includes(n)) names.push(n);
  $("sequence-title").textContent = `${idOf(root)} ${D.kinds[M.kind[root]]}, ${count(rows.length)}${rows.length === ARROWS ? " (cut)" : ""} messages, ${M.lasted[root] ? time(M.lasted[root] - 1) : "never answered"}`;
  const gap = Math.max(150, Math.min(230, 1100 / names.length)), width = gap * names.length + 90, height = 46 + rows.length * 25 + 14;
  const x = (name) => 60 + names.indexOf(name) * gap + gap / 2 - 30;
  const parts = [svg("defs", {}, svg("marker", { id: "head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" }, svg("path", { d: "M0 0L8 4L0 8z", class: "head" })))];
  for (const n of names) parts.push(svg("line", { class: "life", x1: x(n), x2: x(n), y1: 30, y2: height }), svg("rect", { class: "who", x: x(n) - 64, y: 4, width: 128, height: 24, rx: 5 }), svg("text", { x: x(n), y: 20, "text-anchor": "middle" }, n));
  rows.forEach((i, at) => {
    const a = x(D.names[M.src[i]]), b = x(D.names[M.dst[i]]), y = 56 + at * 25, self = a === b;
    const words = `${D.kinds[M.kind[i]]} ${detail(i)}`;
    parts.push(svg("g", { class: "step" + (i === state.row ? " on" : ""), onclick: () => pickRow(i) }, svg("path", { class: M.isReply[i] ? "answer" : "ask", d: self ? `M${a} ${y - 6}h34v10h-30` : `M${a} ${y}H${b + (b > a ? -2 : 2)}`, "marker-end": "url(#head)" }), svg("text", { x: self ? a + 40 : (a + b) / 2, y: y - 4, "text-anchor": self ? "start" : "middle" }, words), svg("title", {}, `${idOf(i)}\nqueued ${time(M.queue[i])}, busy ${time(M.busy[i])}`), svg("text", { x: 2, y, fill: css("--dim") }, time(M.started[i] - M.queue[i] - M.transit[i] - (M.started[root] - M.queue[root] - M.transit[root])))));
  });
  $("sequence-plot").replaceChildren(svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Sequence diagram" }, parts));
  diagram = ["sequenceDiagram", ...names.map((n, i) => `    participant c${i} as ${n}`), ...rows.map((i) => `    c${names.indexOf(D.names[M.src[i]])}${M.isReply[i] ? "-->>" : "->>"}c${names.indexOf(D.names[M.dst[i]])}: ${D.kinds[M.kind[i]]} #${M.seq[i]} ${detail(i)}`.trimEnd())].join("\n") + "\n";
  const chain = [];
  for (let i = state.row; chain.length < 12; i = M.cause[i] - 1) { chain.push(i); if (!M.cause[i]) break; }
  $("causes").replaceChildren("caused by: ", ...chain.slice(1).flatMap((i) => [el("a", { class: "mono", tabindex: 0, onclick: () => pickRow(i) }, `${idOf(i)} ${D.kinds[M.kind[i]]}`), " ← "]).slice(0, -1), chain.length === 1 ? "the client" : "");
}

// ---- doing things -------------------------------------------------------------------------

let byId = null;
function rowOf(id) {
  if (!byId) { byId = new Map(); for (let i = 0; i < M.rows; i++) byId.set(idOf(i), i); }
  return byId.has(id) ? byId.get(id) : -1;
}
function pickRow(i) { state.row = i; redraw(); $("sequence").scrollIntoView({ behavior: "smooth", block: "nearest" }); }
function pickGfn(gfn) { state.gfn = gfn >= 0 && state.gfn >= 0 && state.gfn >> 9 === gfn >> 9 ? NONE : gfn; redraw(); }
function zoom(a, b) {
  const [first, last] = R.span, least = Math.max((last - first) / 1e6, R.ticks_per_s ? 1 : 2);
  if (b - a < least) { const middle = (a + b) / 2; a = middle - least / 2; b = middle + least / 2; }
  state.t0 = Math.max(first, a); state.t1 = Math.min(last, b);
  if (state.t1 <= state.t0) { state.t0 = first; state.t1 = last; }
  redraw();
}
function zoomAround(t) { const w = (R.span[1] - R.span[0]) / 20; zoom(t - w, t + w); }
function zoomBy(factor, at = (state.t0 + state.t1) / 2) { zoom(at - (at - state.t0) * factor, at + (state.t1 - at) * factor); }
function pan(share) { const by = (state.t1 - state.t0) * share, [first, last] = R.span; const d = Math.max(first - state.t0, Math.min(last - state.t1, by)); zoom(state.t0 + d, state.t1 + d); }
function whole() { Object.assign(state, { t0: R.span[0], t1: R.span[1], kind: "", gfn: NONE, row: NONE, domid: "" }); $("search").value = ""; $("domid").value = ""; redraw(); }
function search(text) {
  text = text.trim();
  if (!text) { state.gfn = NONE; state.row = NONE; redraw(); return; }
  if (text.includes("#")) {
    const row = rowOf(text);
    if (row < 0) say(M.rows < M.of ? `${text} is not among the messages of this page; profile --sequence ${text} shows it` : `there is no message ${text}`);
    else { if (M.started[row] < state.t0 || M.started[row] > state.t1) { state.t0 = R.span[0]; state.t1 = R.span[1]; } pickRow(row); }
  } else if (/^(0x[0-9a-f]+|\d+)$/i.test(text)) { state.gfn = Number(text); redraw(); }
  else if (D.kinds.includes(text)) { state.kind = text; redraw(); }
  else {
    const like = Object.keys(R.messages).find((kind) => kind.includes(text.toLowerCase()));
    if (like) { state.kind = like; redraw(); } else say(`nothing is called ${text}: a gfn (0x1200), a message (p2m/3#17) or a kind`);
  }
}
let silence;
function say(text) { const tip = $("tip"); tip.textContent = text; tip.hidden = false; tip.style.left = "50%"; tip.style.top = "70px"; clearTimeout(silence); silence = setTimeout(() => (tip.hidden = true), 4000); }
function tipAt(event, text) {
  const tip = $("tip");
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
}

const DRAW = [drawOverview, drawDomain, drawHeat, drawKinds, drawPaths, drawContention, drawHypercalls, drawPcpus, drawMessages, drawUpdates, drawSequence];
let waiting = 0;
function redraw() { if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; DRAW.forEach((draw) => draw()); remember(); }); }
function remember() {
  const kept = {};
  if (state.t0 !== R.span[0] || state.t1 !== R.span[1]) kept.t = `${Math.round(state.t0)},${Math.round(state.t1)}`;
  for (const name of ["domid", "kind"]) if (state[name]) kept[name] = state[name];
  if (state.gfn >= 0) kept.gfn = hex(state.gfn);
  if (state.row >= 0) kept.id = idOf(state.row);
  if (state.metric !== "updates") kept.metric = state.metric;
  history.replaceState(null, "", "#" + new URLSearchParams(kept));
}
function recall() {
  const kept = new URLSearchParams(location.hash.slice(1)), t = (kept.get("t") || "").split(",").map(Number);
  if (t.length === 2 && t[0] < t[1]) [state.t0, state.t1] = t;
  if (domids.includes(kept.get("domid"))) state.domid = kept.get("domid");
  if (D.kinds.includes(kept.get("kind"))) state.kind = kept.get("kind");
  if (kept.has("gfn")) state.gfn = Number(kept.get("gfn"));
  if (kept.get("metric") === "shatters") state.metric = "shatters";
  if (kept.has("id")) state.row = rowOf(kept.get("id"));
}
function setTheme(dark) { document.documentElement.classList.toggle("dark", dark); }

function listen() {
  for (const id of ["overview-plot", "domain-plot", "heat-plot", "pcpus-plot"]) {
    const c = $(id);
    let from = null;
    const at = (event) => event.clientX - c.getBoundingClientRect().left;
    const box = () => ({ left: 66, right: c.clientWidth - 10 });
    c.addEventListener("pointerdown", (event) => { from = at(event); c.setPointerCapture(event.pointerId); });
    c.addEventListener("pointermove", (event) => { if (from !== null && id === "overview-plot") { brush = [from, at(event)]; drawOverview(); } hover(id, event, at(event)); });
    c.addEventListener("pointerup", (event) => {
      const to = at(event), start = from;
      from = brush = null;
      if (start !== null && Math.abs(to - start) > 4) zoom(toT(box(), Math.min(start, to)), toT(box(), Math.max(start, to)));
      else if (id === "heat-plot") clickHeat(event);
      else drawOverview();
    });
    c.addEventListener("pointerleave", () => tipAt(null, ""));
    c.addEventListener("wheel", (event) => { if (Math.abs(event.deltaY) > Math.abs(event.deltaX) && !event.ctrlKey && !event.shiftKey && id !== "overview-plot") return; event.preventDefault(); if (event.deltaX) pan(event.deltaX / 800); else zoomBy(event.deltaY > 0 ? 1.25 : 0.8, toT(box(), at(event))); }, { passive: false });
    c.addEventListener("dblclick", () => zoom(...R.span));
  }
  document.addEventListener("pointerover", (event) => { const text = event.target.dataset && event.target.dataset.tip; if (text) tipAt(event, text); else if (event.target.tagName !== "CANVAS") $("tip").hidden = true; });
  $("domid").addEventListener("change", (event) => { state.domid = event.target.value; redraw(); });
  $("reset").addEventListener("click", whole);
  $("theme").addEventListener("click", () => { setTheme(!document.documentElement.classList.contains("dark")); redraw(); });
  $("help").addEventListener("click", () => $("keys").showModal());
  $("copy").addEventListener("click", async () => { try { await navigator.clipboard.writeText(diagram); say("copied"); } catch { say("the browser does not let a page copy; profile --sequence prints it"); } });
  for (const button of document.querySelectorAll("[data-metric]")) button.addEventListener("click", () => { state.metric = button.dataset.metric; redraw(); });
  for (const button of document.querySelectorAll("[data-group]")) button.addEventListener("click", () => { state.group = button.dataset.group; drawKinds(); });
  $("search").addEventListener("keydown", (event) => { if (event.key === "Enter") search(event.target.value); if (event.key === "Escape") { event.target.blur(); whole(); } event.stopPropagation(); });
  $("search").addEventListener("search", (event) => { if (!event.target.value) search(""); });
  document.addEventListener("keydown", (event) => {
    if (event.metaKey || event.ctrlKey || event.altKey || $("keys").open || event.target.tagName === "SELECT") return;
    const act = { "/": () => $("search").focus(), Escape: whole, "+": () => zoomBy(0.6), "=": () => zoomBy(0.6), "-": () => zoomBy(1.6), ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2), t: () => $("theme").click(), "?": () => $("keys").showModal() }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  new ResizeObserver(redraw).observe(document.querySelector("main"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => { setTheme(event.matches); redraw(); });
}
function clickHeat(event) { const cell = heatCell(event); if (cell) pickGfn(cell.gfn); }
function heatCell(event) {
  const c = $("heat-plot"), h = (R.domains[shown()] || {}).heat, box = c.getBoundingClientRect();
  if (!h) return null;
  const p = { left: 66, right: c.clientWidth - 10, top: 8, bottom: c.clientHeight - 20 }, bands = h.updates.length;
  const band = Math.floor(((p.bottom - (event.clientY - box.top)) / (p.bottom - p.top)) * bands), t = toT(p, event.clientX - box.left);
  if (band < 0 || band >= bands || t < state.t0 || t > state.t1) return null;
  let bin = 0;
  while (bin < h.edges.length - 2 && h.edges[bin + 1] <= t) bin++;
  return { gfn: h.gfn_edges[band], end: h.gfn_edges[band + 1], t, updates: h.updates[band][bin], shatters: h.shatters[band][bin] };
}
function hover(id, event, x) {
  const c = $(id), p = { left: 66, right: c.clientWidth - 10 };
  if (x < p.left || x > p.right) { tipAt(event, ""); return; }
  const t = toT(p, x), at = `at ${time(t - R.span[0])}`;
  const bin = (e) => { let i = 0; while (i < e.length - 2 && e[i + 1] <= t) i++; return i; };
  if (id === "heat-plot") { const cell = heatCell(event); tipAt(event, cell ? `${at}\ngfn ${hex(cell.gfn)} to ${hex(cell.end - 1)}\n${count(cell.updates)} updates, ${count(cell.shatters)} shatters` : ""); }
  else if (id === "overview-plot") { const i = bin(activity.edges), j = bin(activity.seriesEdges); tipAt(event, `${at}\n${activity.names.slice(0, activity.layers.length).map(([name], k) => `${name} ${count(activity.layers[k][1][i] || 0)}`).join("\n")}${activity.shatters[j] ? `\nshatters ${count(activity.shatters[j])}` : ""}`); }
  else if (id === "domain-plot") { const s = R.domains[shown()].series, i = bin(s.edges); tipAt(event, `${at}\n${Object.keys(s.mapped).sort((a, b) => b - a).map((o) => `${orderName(o)} ${memory(s.mapped[o][i])}`).join("\n")}\nin superpages ${trim(100 * s.coverage[i])} %\n${count(s.updates[i])} updates, ${count(s.shatters[i])} shatters`); }
  else tipAt(event, at);
}

(async () => {
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
  D = JSON.parse(new TextDecoder().decode(await unpack($("data").textContent)));
  R = D.report;
  [M, U, E, P] = await Promise.all([D.messages, D.updates, D.memory, D.running].map(frame));
  domids = Object.keys(R.domains).sort((a, b) => a - b);
  if (R.span[1] <= R.span[0]) R.span[1] = R.span[0] + 1;
  [state.t0, state.t1] = R.span;
  makeActivity();
  recall();
  drawHead();
  legend("overview-legend", activity.names);
  listen();
  DRAW.forEach((draw) => draw());
  window.__state = state;
  window.__ready = performance.now();
})().catch((error) => { $("notice").hidden = false; $("notice").textContent = `This page could not be shown: ${error.message}`; throw error; });
