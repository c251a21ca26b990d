// What people do: choose, zoom, search, keys; and the state in the address.

function setDomid(domid) {
  Object.assign(state, { domid: String(domid), g0: NONE, g1: NONE });
  $("domid").value = state.domid;
  redraw();
}
function pickRow(i) { state.row = i; redraw(); showSequence(); }
function pickId(id) {
  const row = rowOf(id);
  if (row >= 0) {
    if (M.started[row] < state.t0 || M.started[row] > state.t1) [state.t0, state.t1] = R.span;
    pickRow(row);
  } else say(M.complete ? `there is no message ${id}` : `${id} is not among the messages of this page; profile --sequence ${id} shows it`);
}
function pickGfn(gfn) {
  const again = state.gfn >= 0 && superpage(state.gfn) === superpage(gfn);
  state.gfn = again ? NONE : gfn;
  if (state.g0 >= 0 && !again && (gfn < state.g0 || gfn >= state.g1)) state.g0 = state.g1 = NONE;
  redraw();
}
// `moves`: one of many, as while something is dragged.
function zoom(a, b, moves = false) {
  const [first, last] = R.span, least = Math.min(last - first, Math.max((last - first) / 1e6, 4));
  if (b - a < least) { const middle = (a + b) / 2; a = middle - least / 2; b = middle + least / 2; }
  if (a < first) { b = Math.min(last, Math.max(b, first + least)); a = first; }
  if (b > last) { a = Math.max(first, Math.min(a, last - least)); b = last; }
  state.t0 = a;
  state.t1 = b;
  redraw(moves);
}
function zoomBy(factor, at = (state.t0 + state.t1) / 2) { zoom(at - (at - state.t0) * factor, at + (state.t1 - at) * factor, true); }
function pan(share) {
  const by = Math.max(R.span[0] - state.t0, Math.min(R.span[1] - state.t1, (state.t1 - state.t0) * share));
  zoom(state.t0 + by, state.t1 + by, true);
}
// First what is selected, then the zoom and the domain.
function clear() {
  const selected = state.kind || state.gfn >= 0 || state.row >= 0 || state.g0 >= 0;
  $("search").value = "";
  if (selected) { Object.assign(state, { kind: "", gfn: NONE, row: NONE, g0: NONE, g1: NONE }); redraw(); } else showWhole();
}
function showWhole() {
  Object.assign(state, { t0: R.span[0], t1: R.span[1], kind: "", gfn: NONE, row: NONE, g0: NONE, g1: NONE });
  $("search").value = "";
  setDomid("");
}
function search(text) {
  text = text.trim();
  const kinds = D.kinds.filter((kind) => kind.includes(text.toLowerCase()));
  if (!text) { Object.assign(state, { gfn: NONE, row: NONE }); redraw(); }
  else if (text.includes("#")) pickId(text);
  else if (/^(0x[0-9a-f]+|\d+)$/i.test(text)) searchNumber(text);
  else if (domids.includes((/^d(?:om(?:ain)?)? ?(\d+)$/i.exec(text) || [])[1])) setDomid(/\d+/.exec(text)[0]);
  else if (kinds.length) { state.kind = kinds.includes(text) ? text : kinds[0]; redraw(); }
  else say(`nothing is called ${text}: try a gfn (0x1200 or 4608), a message (p2m/3#17), a domain (d3) or a kind`);
}
// Numbers as large as an id of a message are one; others are gfns.
function searchNumber(text) {
  const number = BigInt(text), src = number >> 40n;
  if (src > 0n) { pickId(`${D.names[Number(src)]}#${number & ((1n << 40n) - 1n)}`); return; }
  Object.assign(state, { gfn: Number(number), g0: NONE, g1: NONE });
  redraw();
  const domid = chosenDomid();
  for (let i = 0; i < U.rows; i++) if ((domid < 0 || U.domid[i] === domid) && touches(U.gfn[i], 1, U.order[i])) return;
  say(`no update of ${state.domid ? domainName(state.domid) : "any domain"} touches the superpage of ${hex(state.gfn)}${U.complete ? "" : ", among those in this page"}`);
}

// ---- drawing ------------------------------------------------------------------------------

function drawHead() {
  $("source").textContent = (R.source || "").split("/").pop();
  const header = R.header || {}, host = header.host || {};
  const facts = [R.format === "xentrace" ? "real Xen" : header.runtime ? `shatterproof on ${header.runtime}` : "shatterproof"];
  if (host.paging) facts.push(`${host.paging} tables`);
  if (header.seed != null) facts.push(`seed ${header.seed}`);
  facts.push(plural(R.records || 0, "record"));
  if (M.of) facts.push(plural(M.of, "message"));
  if (U.of) facts.push(plural(U.of, "p2m update"));
  facts.push(time(R.span[1] - R.span[0]), plural(domids.length, "domain"));
  $("facts").textContent = facts.join(" · ");
  const notes = [];
  if (R.truncated) notes.push("The file was cut off; this is what it holds up to its last whole block.");
  if (R.lost) notes.push(`${plural(R.lost, "record")} were lost: not all that happened is here.`);
  if (!M.complete) notes.push(`Of ${count(M.of)} messages this page holds ${count(M.rows)}: the slowest hypercalls with all that they caused, and a uniform sample. Figures and plots of the whole run are of all, those of a part are estimated from these. To see a part in full: profile --between T0 T1 or --domid N.`);
  $("notice").hidden = !notes.length;
  $("notice").textContent = notes.join(" ");
  $("domid").replaceChildren(el("option", { value: "" }, "all"), ...domids.map((d) => el("option", { value: d }, d)));
  $("domid").value = state.domid;
  $("kinds-list").replaceChildren(...D.kinds.map((kind) => el("option", { value: kind })));
}
// What one may look for in vain, and why it is not here.
function drawMissing() {
  const words = [];
  if (R.format === "xentrace") words.push("A xentrace records no messages: kinds, latencies, critical paths, contention and sequence diagrams need a trace of our own (launch --trace).");
  else if (!M.of) words.push("No messages were selected, so there are no kinds, critical paths or contention.");
  if (!U.of) words.push("No p2m update was recorded, so there is no memory, heat map or list of updates.");
  else if (!D.flagged) words.push("This is a part of a trace, so single updates do not say what they shattered; the figures do.");
  if ((R.header || {}).runtime === "stress") words.push("What a stress run had mapped before it began is in no trace: memory and shatters are what its own updates alone say.");
  if (R.format === "xentrace" && !P.rows) words.push("No runstate changes were traced, so nobody knows who ran on which pCPU.");
  if (R.format === "xentrace" && !Object.keys(R.hypercalls || {}).length) words.push("No hypercall was traced (the trace mask leaves them out).");
  $("missing").hidden = !words.length;
  $("missing").textContent = words.join(" ");
}
// Plots follow every movement; lists and what is computed for them wait until it pauses.
const PLOTS = [drawOverview, drawDomain, drawHeat, drawPcpus];
const REST = [drawFleet, drawKinds, drawPaths, drawContention, drawHypercalls, drawEvents, drawMessages, drawUpdates, drawSequence];
const PAUSE = 140;
let waiting = 0, resting = 0, whole = false;
function redraw(moves = false) {
  whole = whole || moves !== true;
  if (waiting) return;
  waiting = requestAnimationFrame(() => {
    const all = whole;
    waiting = 0;
    whole = false;
    for (const draw of PLOTS) draw();
    clearTimeout(resting);
    if (all) drawRest();
    else resting = setTimeout(drawRest, PAUSE);
    remember();
  });
}
function drawRest() { for (const draw of REST) draw(); }
let remembered = 0, later = 0;
// Browsers refuse addresses that change too often, as they would while one drags.
function remember() {
  clearTimeout(later);
  if (performance.now() - remembered < 300) { later = setTimeout(remember, 300); return; }
  remembered = performance.now();
  const kept = {};
  if (!isWhole()) kept.t = `${Math.round(state.t0)},${Math.round(state.t1)}`;
  for (const name of ["domid", "kind", "theme"]) if (state[name]) kept[name] = state[name];
  if (state.g0 >= 0) kept.gfns = `${hex(state.g0)}-${hex(state.g1 - 1)}`;
  if (state.gfn >= 0) kept.gfn = hex(state.gfn);
  if (state.row >= 0) kept.id = idOf(state.row);
  if (state.metric !== "updates") kept.metric = state.metric;
  if (state.group !== "messages") kept.group = state.group;
  if (state.of !== "latency") kept.of = state.of;
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}
function recall() {
  const kept = new URLSearchParams(location.hash.slice(1)), number = (text) => (Number.isSafeInteger(Number(text)) && text !== "" ? Number(text) : NONE);
  const t = (kept.get("t") || "").split(",").map(Number), gfns = (kept.get("gfns") || "").split("-").map(number);
  Object.assign(state, { t0: R.span[0], t1: R.span[1], domid: "", kind: "", gfn: NONE, row: NONE, g0: NONE, g1: NONE, metric: "updates" });
  if (t.length === 2 && t[0] < t[1] && t[0] < R.span[1] && t[1] > R.span[0]) [state.t0, state.t1] = [Math.max(t[0], R.span[0]), Math.min(t[1], R.span[1])];
  if (domids.includes(kept.get("domid"))) state.domid = kept.get("domid");
  if (D.kinds.includes(kept.get("kind"))) state.kind = kept.get("kind");
  if (kept.has("gfn")) state.gfn = number(kept.get("gfn"));
  if (gfns.length === 2 && gfns[0] >= 0 && gfns[1] > gfns[0]) [state.g0, state.g1] = [gfns[0], gfns[1] + 1];
  if (kept.get("metric") === "shatters") state.metric = "shatters";
  state.group = kept.get("group") === "services" ? "services" : "messages";
  state.of = TIMES[kept.get("of")] ? kept.get("of") : "latency";
  if (kept.has("id")) state.row = rowOf(kept.get("id"));
  if (["dark", "light"].includes(kept.get("theme"))) state.theme = kept.get("theme");
  $("domid").value = state.domid;
}
function setTheme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  $("theme").setAttribute("aria-pressed", String(dark));
  readColours();
}
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

// ---- listening ----------------------------------------------------------------------------

function listen() {
  timePlot("overview-plot", { tip: overviewTip, wheel: true, right: 10 });
  timePlot("domain-plot", { tip: domainTip, left: LANE_LEFT });
  timePlot("heat-plot", { tip: heatTip, click: clickHeat, rectangle: zoomGfns, right: 10 });
  timePlot("queues-plot", { tip: queuesTip, right: 10 });
  timePlot("pcpus-plot", { tip: pcpusTip, right: 10 });
  listenContext();
  $("latency-plot").addEventListener("pointermove", (event) => tipAt(event, latencyTip(event)));
  $("latency-plot").addEventListener("pointerleave", () => tipAt(null, ""));
  document.addEventListener("pointerover", (event) => {
    const told = event.target.closest && event.target.closest("[data-tip]");
    if (told) tipAt(event, told.dataset.tip);
    else if (event.target.tagName !== "CANVAS") tipAt(event, "");
  });
  $("domid").addEventListener("change", (event) => setDomid(event.target.value));
  $("reset").addEventListener("click", showWhole);
  $("gfns").addEventListener("click", () => { state.g0 = state.g1 = NONE; redraw(); });
  $("theme").addEventListener("click", () => {
    const dark = !document.documentElement.classList.contains("dark");
    state.theme = dark === prefersDark.matches ? "" : dark ? "dark" : "light";
    setTheme(dark);
    redraw();
  });
  prefersDark.addEventListener("change", () => { if (!state.theme) { setTheme(prefersDark.matches); redraw(); } });
  $("help").addEventListener("click", () => $("keys").showModal());
  $("close").addEventListener("click", () => { state.row = NONE; redraw(); });
  $("copy").addEventListener("click", copyDiagram);
  for (const button of all("[data-metric]")) button.addEventListener("click", () => { state.metric = button.dataset.metric; redraw(); });
  for (const name of ["group", "of"]) for (const button of all(`[data-${name}]`)) button.addEventListener("click", () => { state[name] = button.dataset[name]; redraw(); });
  listenKeys();
  new ResizeObserver(redraw).observe(document.querySelector("main"));
  addEventListener("hashchange", () => { recall(); redraw(); });
}
async function copyDiagram() {
  try {
    await navigator.clipboard.writeText(diagram);
    say("copied as Mermaid");
  } catch {
    const area = el("textarea", { class: "sr", "aria-label": "Mermaid" });
    area.value = diagram;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    say(done ? "copied as Mermaid" : "the browser lets no page copy; profile --sequence prints it");
  }
}
function listenKeys() {
  const field = $("search");
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") { search(field.value); field.select(); }
    if (event.key === "Escape") { field.blur(); clear(); }
  });
  field.addEventListener("search", () => { if (!field.value) search(""); });
  const keys = {
    "/": () => { field.focus(); field.select(); }, Escape: clear, "+": () => zoomBy(0.6), "=": () => zoomBy(0.6), "-": () => zoomBy(1.6),
    ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2), t: () => $("theme").click(), "?": () => $("keys").showModal(),
    ArrowUp: () => panGfns(0.25), ArrowDown: () => panGfns(-0.25),
  };
  document.addEventListener("keydown", (event) => {
    if (event.metaKey || event.ctrlKey || event.altKey || $("keys").open || event.target.tagName === "SELECT") return;
    const act = keys[event.key];
    if (!act) return;
    // Up and down scroll the page unless there is a map to move in.
    if (["ArrowUp", "ArrowDown"].includes(event.key) && state.g0 < 0) return;
    event.preventDefault();
    act();
  });
}

(async () => {
  setTheme(prefersDark.matches);
  await readData();
  nameServices();
  drawHead();
  recall();
  if (state.theme) setTheme(state.theme === "dark");
  listen();
  for (const draw of PLOTS) draw();
  drawRest();
  drawMissing();
  document.body.classList.add("ready");
  window.__state = state;
  requestAnimationFrame(() => (window.__ready = performance.now()));
})().catch((error) => {
  $("notice").hidden = false;
  $("notice").textContent = `This page could not be shown: ${error.message}. It needs a browser of 2023 or later.`;
  throw error;
});
