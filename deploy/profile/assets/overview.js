// Over time: messages by service, updates and shatters below, and where in the run one is.

const UPDATE_LANE = 46;
let overview; // what was drawn last, for the tip

function overviewLanes() {
  const rate = R.format === "xentrace" ? null : rateInSight(), said = seriesSum("updates"), lanes = lanesInSight(evenEdges());
  return { rate, updates: said && said.values.some((v) => v) ? lanes.updates : null, shatters: said ? lanes.shatters : null };
}
function perSecond(edges) {
  const wide = edges.length > 1 ? (edges[edges.length - 1] - edges[0]) / (edges.length - 1) : 1;
  return R.ticks_per_s ? R.ticks_per_s / wide : 1 / wide;
}
function drawLane(p, edges, layers, title) {
  const rate = perSecond(edges), top = scale((highest(layers, edges) || 1) * rate, { most: p.bottom - p.top > 60 ? 4 : 2 });
  valueAxis(p, top, shortCount, "");
  stacked(p, edges, layers, top.top / rate, false);
  p.g.textAlign = "left";
  p.g.fillStyle = colours.dim;
  p.g.fillText(title, p.left, p.top - 9);
}
function drawOverview() {
  const p = canvas("overview-plot", { right: 10 }), lanes = overviewLanes(), bottom = p.bottom, unit = R.ticks_per_s ? "/s" : " a step";
  overview = lanes;
  timeAxis({ ...p, top: 16 });
  const upper = { ...p, top: 16, bottom: lanes.rate && lanes.updates ? bottom - UPDATE_LANE - 22 : bottom };
  const lower = lanes.rate ? { ...p, top: bottom - UPDATE_LANE, bottom } : upper;
  if (lanes.rate) drawLane(upper, lanes.rate.edges, lanes.rate.layers.map(([name, values], i) => [colour(name, i), values]), `messages${unit}`);
  if (lanes.updates) drawLane(lower, lanes.updates.edges, [[colours.sky, lanes.updates.values]], `p2m updates${unit}`);
  if (lanes.shatters) marks(p, lanes.shatters.edges, lanes.shatters.values, lower.top - 8, colours.red);
  const items = lanes.rate ? lanes.rate.layers.map(([name], i) => [name, colour(name, i)]) : [];
  if (lanes.updates) items.push(["p2m updates", colours.sky]);
  if (lanes.shatters && seriesSum("shatters").values.some((v) => v)) items.push(["▼ shatters", colours.red]);
  legend("overview-legend", items);
  const part = state.domid ? `, ${domainName(state.domid)}` : "";
  $("zoomed").textContent = isWhole()
    ? `the whole run, ${time(R.span[1] - R.span[0])}${part}; drag across any plot to zoom in`
    : `${moment(state.t0)} to ${moment(state.t1)}: ${time(state.t1 - state.t0)} of ${time(R.span[1] - R.span[0])}${part}`;
  drawContext();
}
function overviewTip(t) {
  if (!overview) return "";
  const words = [`at ${moment(t)}`], { rate, updates, shatters } = overview;
  if (rate) {
    const i = binAt(rate.edges, t);
    for (const [name, values] of rate.layers) if (values[i]) words.push(`${name} ${plural(values[i], "message")}`);
  }
  if (updates && updates.values[binAt(updates.edges, t)]) words.push(plural(updates.values[binAt(updates.edges, t)], "p2m update"));
  if (shatters && shatters.values[binAt(shatters.edges, t)]) words.push(plural(shatters.values[binAt(shatters.edges, t)], "shatter"));
  return words.join("\n");
}

// The strip below: the whole run always, with the window in it to move and to resize.
const contextX = (p, t) => p.left + ((t - R.span[0]) / (R.span[1] - R.span[0])) * (p.right - p.left);
function drawContext() {
  const p = canvas("context-plot", { right: 10, bottom: 2 }), { g } = p, rate = R.rate || {}, own = rate.total && rate.total.length;
  const updates = seriesSum("updates"), edges = own ? rate.edges : updates ? updates.edges : null;
  p.top = 2;
  g.fillStyle = colours.grid;
  g.fillRect(p.left, p.top, p.right - p.left, p.bottom - p.top);
  if (edges) {
    const values = own ? rate.total : updates.values, top = Math.max(1, ...values);
    g.fillStyle = colours.dim;
    for (let i = 0; i < values.length; i++) {
      if (!values[i]) continue;
      const x = contextX(p, edges[i]), tall = Math.max(1, (Math.sqrt(values[i] / top)) * (p.bottom - p.top));
      g.fillRect(x, p.bottom - tall, Math.max(1, contextX(p, edges[i + 1]) - x), tall);
    }
  }
  const [a, b] = [contextX(p, state.t0), contextX(p, state.t1)];
  g.fillStyle = colours.card;
  g.globalAlpha = 0.72;
  g.fillRect(p.left, p.top, a - p.left, p.bottom - p.top);
  g.fillRect(b, p.top, p.right - b, p.bottom - p.top);
  g.globalAlpha = 1;
  g.strokeStyle = g.fillStyle = colours.accent;
  g.lineWidth = 1.5;
  g.strokeRect(a, p.top, Math.max(b - a, 1), p.bottom - p.top);
  for (const x of [a, b]) g.fillRect(x - 2, p.top + 5, 4, p.bottom - p.top - 10);
}
function listenContext() {
  const c = $("context-plot");
  let grip = null;
  const at = (event) => {
    const x = event.clientX - c.getBoundingClientRect().left;
    return R.span[0] + Math.max(0, Math.min(1, (x - LEFT) / (c.clientWidth - 10 - LEFT))) * (R.span[1] - R.span[0]);
  };
  const near = () => (8 * (R.span[1] - R.span[0])) / Math.max(1, c.clientWidth - 10 - LEFT);
  const gripAt = (t) => {
    if (Math.abs(t - state.t0) < near() && !isWhole()) return { fixed: state.t1 };
    if (Math.abs(t - state.t1) < near() && !isWhole()) return { fixed: state.t0 };
    return t > state.t0 && t < state.t1 && !isWhole() ? { moved: t - state.t0 } : { fixed: t };
  };
  c.addEventListener("pointerdown", (event) => { grip = gripAt(at(event)); c.setPointerCapture(event.pointerId); });
  c.addEventListener("pointermove", (event) => {
    const t = at(event);
    if (!grip) { const g = gripAt(t); c.style.cursor = g.moved !== undefined ? "grab" : isWhole() ? "crosshair" : "ew-resize"; return; }
    if (grip.moved !== undefined) {
      const wide = state.t1 - state.t0, from = Math.max(R.span[0], Math.min(R.span[1] - wide, t - grip.moved));
      zoom(from, from + wide, true);
    } else if (Math.abs(t - grip.fixed) > near() / 4) zoom(Math.min(t, grip.fixed), Math.max(t, grip.fixed), true);
  });
  for (const end of ["pointerup", "pointercancel"]) c.addEventListener(end, () => (grip = null));
  c.addEventListener("dblclick", () => zoom(...R.span));
}
