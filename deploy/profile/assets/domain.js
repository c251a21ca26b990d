// Memory over time by leaf order with the share in superpages, and what happened to it below.

const STRIPS = {
  shatters: ["shatters", "red"], updates: ["p2m updates", "sky"], populate_calls: ["populate calls", "green"],
  extents: ["extents", "green"], fallbacks: ["fallbacks in the ladder", "red"], nested_faults: ["nested faults", "pink"],
  pod_populate: ["PoD populated", "blue"], pod_splinter: ["PoD splintered", "red"], pod_reclaim: ["PoD reclaimed", "orange"],
};
const STRIP_HEIGHT = 19, LANE_PIXELS = 2, STEPS_DRAWN = 4000;
let memoryShown = null; // what was drawn last, for the tip

function drawDomain() {
  $("domain").hidden = !reportedSeries().length;
  if ($("domain").hidden) { memoryShown = null; return; }
  $("domain-name").textContent = state.domid ? domainName(state.domid) : domids.length === 1 ? domainName(domids[0]) : `all ${count(domids.length)} domains`;
  const strips = lanesUsed();
  $("domain-plot").style.height = `${182 + BOTTOM + strips.length * STRIP_HEIGHT}px`;
  const whole = canvas("domain-plot"), p = { ...whole, bottom: 176 }, wide = Math.max(40, Math.floor(p.right - p.left));
  const shown = memoryInSight(STEPS_DRAWN, wide), lanes = lanesInSight(evenEdges(Math.floor(wide / LANE_PIXELS)));
  memoryShown = { ...shown, share: shareOf(shown), lanes, strips };
  const orders = Object.keys(shown.mapped).sort((a, b) => b - a), layers = orders.map((o) => [colour(o), shown.mapped[o]]);
  const axis = scale(highest(layers, shown.edges) || 256, { step: binaryStep });
  timeAxis(whole);
  valueAxis(p, axis, memory);
  stacked(p, shown.edges, layers, axis.top, true);
  if (layers.length) drawShare(p, shown.edges, memoryShown.share);
  if (lanes.shatters) marks(p, lanes.shatters.edges, lanes.shatters.values, p.top - 7, colours.red);
  strips.forEach((name, i) => drawStrip(whole, name, lanes[name], p.bottom + 6 + i * STRIP_HEIGHT));
  legend("domain-legend", [...orders.map((o) => [orderName(o), colour(o)]), ["share in superpages", colours.ink], ["▼ shatters", colours.red]]);
  $("domain-title").textContent = strips.length ? `mapped, by leaf order; lanes in bins of ${time(binWidth(lanes))}` : "mapped, by leaf order";
  if (!layers.length) {
    whole.g.fillStyle = colours.dim;
    whole.g.textAlign = "center";
    whole.g.fillText("Nothing was mapped, or the trace does not say so.", (p.left + p.right) / 2, p.bottom / 2);
  }
  drawDomainFacts();
}
function drawShare(p, edges, share) {
  const { g } = p;
  stepLine(p, edges, share, 1.02, colours.card, 4);
  stepLine(p, edges, share, 1.02, colours.ink, 1.6);
  g.fillStyle = colours.dim;
  g.textAlign = "left";
  for (const part of [0, 0.5, 1]) g.fillText(`${100 * part} %`, p.right + 6, p.bottom - (part / 1.02) * (p.bottom - p.top));
}
function drawStrip(p, name, { edges, values }, top) {
  const lane = { ...p, top: top + 3, bottom: top + STRIP_HEIGHT - 1 }, [words, c] = STRIPS[name];
  const most = highest([[c, values]], edges);
  p.g.strokeStyle = colours.line;
  p.g.lineWidth = 1;
  p.g.beginPath(); p.g.moveTo(p.left, lane.bottom + 0.5); p.g.lineTo(p.right, lane.bottom + 0.5); p.g.stroke();
  if (most) stacked(lane, edges, [[colours[c], values]], most, false);
  p.g.fillStyle = colours.dim;
  p.g.textAlign = "left";
  p.g.fillText(shortCount(most), p.right + 6, lane.bottom - 5);
  const wide = p.g.measureText(words).width, x = emptiest(p, edges, values, wide + 10);
  p.g.fillStyle = colours.card;
  p.g.globalAlpha = 0.82;
  p.g.fillRect(x, lane.top, wide + 8, STRIP_HEIGHT - 5);
  p.g.globalAlpha = 1;
  p.g.fillStyle = colours.ink;
  p.g.fillText(words, x + 4, lane.top + 7);
}
// Where a name hides the least of a lane: on the left if that is empty, else further to the right.
function emptiest(p, edges, values, wide) {
  const right = p.right - wide, places = [p.left + 1, right, (p.left + right) / 2, (3 * p.left + right) / 4, (p.left + 3 * right) / 4];
  let best = places[0], least = Infinity;
  for (const x of places) {
    let hidden = 0;
    for (let i = binAt(edges, toT(p, x)), end = binAt(edges, toT(p, x + wide)); i <= end; i++) if (values[i]) hidden++;
    if (hidden < least) { least = hidden; best = x; }
  }
  return best;
}
function domainTip(t) {
  if (!memoryShown) return "";
  const { edges, mapped, share, lanes, strips } = memoryShown, i = binAt(edges, t), words = [`at ${moment(t)}`];
  for (const o of Object.keys(mapped).sort((a, b) => b - a)) words.push(`${orderName(o)} ${memory(mapped[o][i])}`);
  words.push(Number.isNaN(share[i]) ? "nothing is mapped" : `${percent(share[i])} in superpages`);
  for (const name of strips) {
    const lane = lanes[name], n = lane.values[binAt(lane.edges, t)];
    if (n) words.push(`${STRIPS[name][0]} ${count(n)}`);
  }
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
