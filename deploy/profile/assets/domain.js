// Memory over time by leaf order with the share in superpages, and what happened to it below.

const STRIPS = [
  ["shatters", "shatters", "red"], ["updates", "p2m updates", "sky"], ["populate_calls", "populate calls", "green"],
  ["extents", "extents", "green"], ["nested_faults", "nested faults", "pink"], ["pod_populate", "PoD populated", "blue"],
  ["pod_splinter", "PoD splintered", "red"], ["pod_reclaim", "PoD reclaimed", "orange"],
];
const STRIP_HEIGHT = 19;
const cached = {};

// The series of the domain that is chosen, or of all together.
function seriesShown() {
  const key = state.domid || "all";
  if (cached[key] !== undefined) return cached[key];
  if (state.domid) return (cached[key] = (R.domains[state.domid] || {}).series || null);
  const sections = Object.values(R.domains).map((d) => d.series).filter(Boolean);
  if (!sections.length) return (cached[key] = null);
  const nr = sections[0].edges.length - 1, made = { edges: sections[0].edges, mapped: {} };
  for (const s of sections) for (const [order, values] of Object.entries(s.mapped)) {
    const out = (made.mapped[order] = made.mapped[order] || new Float64Array(nr));
    for (let i = 0; i < nr; i++) out[i] += values[i];
  }
  const orders = Object.entries(made.mapped);
  made.coverage = Array.from({ length: nr }, (_, i) => {
    let large = 0, every = 0;
    for (const [order, values] of orders) { every += values[i]; if (order >= 9) large += values[i]; }
    return every ? large / every : 0;
  });
  for (const [name] of STRIPS) made[name] = (seriesSum(name) || { values: [] }).values;
  return (cached[key] = made);
}
function drawDomain() {
  const s = seriesShown();
  $("domain").hidden = !s;
  if (!s) return;
  $("domain-name").textContent = state.domid ? domainName(state.domid) : domids.length === 1 ? domainName(domids[0]) : `all ${domids.length} domains`;
  const strips = STRIPS.filter(([name]) => s[name] && s[name].some((v) => v));
  $("domain-plot").style.height = `${182 + BOTTOM + strips.length * STRIP_HEIGHT}px`;
  const whole = canvas("domain-plot"), p = { ...whole, bottom: 176 };
  const orders = Object.keys(s.mapped).sort((a, b) => b - a), layers = orders.map((o) => [colour(o), s.mapped[o]]);
  timeAxis(whole);
  valueAxis(p, scale(highest(layers, s.edges) || 256, { step: binaryStep }), memory);
  const { top } = scale(highest(layers, s.edges) || 256, { step: binaryStep });
  stacked(p, s.edges, layers, top, true);
  if (layers.length) drawCoverage(p, s);
  marks(p, s.edges, s.shatters, p.top - 7, colours.red);
  strips.forEach(([name, words, c], i) => drawStrip(whole, s, name, words, colours[c], p.bottom + 6 + i * STRIP_HEIGHT));
  legend("domain-legend", [...orders.map((o) => [orderName(o), colour(o)]), ["share in superpages", colours.ink], ["▼ shatters", colours.red]]);
  if (!layers.length) {
    whole.g.fillStyle = colours.dim;
    whole.g.textAlign = "center";
    whole.g.fillText("Nothing was mapped, or the trace does not say so.", (p.left + p.right) / 2, p.bottom / 2);
  }
  drawDomainFacts();
}
function drawCoverage(p, s) {
  const { g } = p;
  stepLine(p, s.edges, s.coverage, 1.02, colours.card, 4);
  stepLine(p, s.edges, s.coverage, 1.02, colours.ink, 1.6);
  g.fillStyle = colours.dim;
  g.textAlign = "left";
  for (const share of [0, 0.5, 1]) g.fillText(`${100 * share} %`, p.right + 6, p.bottom - (share / 1.02) * (p.bottom - p.top));
}
function drawStrip(p, s, name, words, c, top) {
  const lane = { ...p, top: top + 3, bottom: top + STRIP_HEIGHT - 1 };
  const most = highest([[c, s[name]]], s.edges);
  p.g.strokeStyle = colours.line;
  p.g.lineWidth = 1;
  p.g.beginPath(); p.g.moveTo(p.left, lane.bottom + 0.5); p.g.lineTo(p.right, lane.bottom + 0.5); p.g.stroke();
  if (most) stacked(lane, s.edges, [[c, s[name]]], most, false);
  p.g.fillStyle = colours.dim;
  p.g.textAlign = "left";
  p.g.fillText(shortCount(most), p.right + 6, lane.bottom - 5);
  const wide = p.g.measureText(words).width;
  p.g.fillStyle = colours.card;
  p.g.globalAlpha = 0.82;
  p.g.fillRect(p.left + 1, lane.top, wide + 8, STRIP_HEIGHT - 5);
  p.g.globalAlpha = 1;
  p.g.fillStyle = colours.ink;
  p.g.fillText(words, p.left + 5, lane.top + 7);
}
function domainTip(t) {
  const s = seriesShown();
  if (!s) return "";
  const i = binAt(s.edges, t), words = [`at ${moment(t)}`];
  for (const o of Object.keys(s.mapped).sort((a, b) => b - a)) words.push(`${orderName(o)} ${memory(s.mapped[o][i])}`);
  words.push(`${percent(s.coverage[i])} in superpages`);
  for (const [name, what] of STRIPS) if (s[name] && s[name][i]) words.push(`${what} ${count(s[name][i])}`);
  return words.join("\n");
}
function drawDomainFacts() {
  const chosen = state.domid ? [R.domains[state.domid]] : Object.values(R.domains);
  const add = (pick) => chosen.reduce((into, d) => {
    for (const [key, n] of Object.entries(pick(d) || {})) into[key] = (into[key] || 0) + n;
    return into;
  }, {});
  const total = (pick) => chosen.reduce((n, d) => n + (pick(d) || 0), 0);
  const updates = add((d) => Object.fromEntries(Object.entries(d.p2m_updates || {}).map(([o, kinds]) => [o, sum(kinds)])));
  const facts = [["p2m updates", listed(updates) || "none"], ["shatters", listed(add((d) => d.shatters), stepName) || "none"]];
  const calls = total((d) => d.populate && d.populate.calls);
  if (calls) {
    const most = Math.max(...chosen.map((d) => (d.populate ? d.populate.extents_per_call.max : 0)));
    const half = chosen.length === 1 ? `p50 ${count(chosen[0].populate.extents_per_call.p50)}, ` : "";
    facts.push(["populate calls", `${count(calls)}, extents a call ${half}max ${count(most)}`]);
    facts.push(["fallbacks in the ladder", listed(add((d) => d.populate && d.populate.fallbacks), stepName) || "none"]);
  }
  const faults = total((d) => d.nested_faults), down = add((d) => d.decrease_reservation), pod = add((d) => d.pod_populate);
  if (faults) facts.push(["nested faults", count(faults)]);
  if (sum(down)) facts.push(["decrease_reservation", listed(down)]);
  if (sum(pod)) facts.push(["populate on demand", `${listed(pod)} populated, ${count(total((d) => d.pod_superpage_splinter))} splintered, ${listed(add((d) => d.pod_zero_reclaim)) || "none"} reclaimed`]);
  $("domain-facts").replaceChildren(...facts.map(([name, text]) => el("span", {}, `${name} `, el("b", {}, text))));
}
