// Memory over time by leaf order with the share in superpages, and what happened to it below.

const STRIPS = {
  shatters: ["shatters", "red"], updates: ["p2m updates", "sky"], populate_calls: ["populate calls", "green"],
  extents: ["extents", "green"], fallbacks: ["fallbacks", "red"], nested_faults: ["nested faults", "pink"],
  pod_populate: ["PoD populated", "blue"], pod_splinter: ["PoD splintered", "red"], pod_reclaim: ["PoD reclaimed", "orange"],
};
const STRIP_HEIGHT = 19, LANE_PIXELS = 2, LANE_LEFT = 98, STEPS_DRAWN = 4000;
let memoryShown = null; // what was drawn last, for the tip

function drawDomain() {
  $("domain").hidden = !reportedSeries().length;
  if ($("domain").hidden) { memoryShown = null; return; }
  $("domain-name").textContent = state.domid ? domainName(state.domid) : domids.length === 1 ? domainName(domids[0]) : `all ${count(domids.length)} domains`;
  const strips = lanesUsed();
  $("domain-plot").style.height = `${182 + BOTTOM + strips.length * STRIP_HEIGHT}px`;
  const whole = canvas("domain-plot", { left: LANE_LEFT }), p = { ...whole, bottom: 176 }, wide = Math.max(40, Math.floor(p.right - p.left));
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
  p.g.fillStyle = colours.ink;
  p.g.textAlign = "right";
  p.g.fillText(words, p.left - 8, lane.bottom - 6);
}
function domainTip(t) {
  if (!memoryShown) return "";
  const { edges, mapped, share, lanes, strips } = memoryShown, i = binAt(edges, t), words = [`at ${moment(t)}`];
  for (const o of Object.keys(mapped).sort((a, b) => b - a)) words.push(`${orderName(o)} ${memory(mapped[o][i])}`);
  words.push(Number.isNaN(share[i]) ? "nothing is mapped" : `${percent(share[i])} in superpages`);
  for (const name of strips) {
    const lane = lanes[name], n = lane.values[binAt(lane.edges, t)];
    const calls = name === "extents" ? lanes.populate_calls.values[binAt(lanes.populate_calls.edges, t)] : 0;
    if (n) words.push(`${STRIPS[name][0]} ${count(n)}${calls ? `, ${trim(n / calls)} a call` : ""}`);
  }
  return words.join("\n");
}
