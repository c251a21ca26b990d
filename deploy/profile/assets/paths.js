// What the run and its slowest hypercalls waited for, one thing after the other.

const OPACITY = { service: 1, queue: 0.5, idle: 0.3, transit: 1, lock: 0.7 };
const SLOW_SHOWN = 4;
let morePaths = false;
let pathsDrawn = "";

function drawPaths() {
  const found = R.critical_path || {}, paths = [found.run, ...(found.slowest || [])].filter(Boolean);
  $("paths").hidden = !paths.length;
  const look = `${colours.ink} ${$("paths-list").clientWidth} ${morePaths}`; // nothing else changes it
  if (!paths.length || look === pathsDrawn) return;
  pathsDrawn = look;
  const shown = morePaths ? paths : paths.slice(0, SLOW_SHOWN + 1);
  $("paths-list").replaceChildren(...shown.map(pathRow),
    ...(paths.length > shown.length || morePaths ? [el("button", { type: "button", class: "more", onclick: () => { morePaths = !morePaths; drawPaths(); } }, morePaths ? "fewer" : `${paths.length - shown.length} more`)] : []));
  const who = [...new Set(paths.flatMap((path) => Object.keys(path.by_service)))];
  legend("paths-legend", [...who.map((name) => [name === "transport" ? "transport (between shards)" : name, colour(name)]), ["faint: queued or idle", ""]]);
  shown.forEach((path, i) => paintStripe($("paths-list").children[i].querySelector("canvas"), path));
}
function pathRow(path) {
  const whole = Math.max(path.end - path.start, 1), facts = [path.kind, path.kind && path.domid >= 0 ? domainName(path.domid) : "", time(whole)];
  if (path.messages) facts.push(plural(path.messages, "message"));
  const stripe = el("canvas", { class: "stripe", role: "img", "aria-label": `${path.id}: ${Object.entries(path.by_service).map(([name, ticks]) => `${name} ${percent(ticks, whole)}`).join(", ")}` });
  stripe.addEventListener("pointermove", (event) => tipAt(event, stripeTip(path, segmentAt(stripe, path, event))));
  stripe.addEventListener("pointerleave", () => tipAt(null, ""));
  stripe.addEventListener("click", (event) => { const s = segmentAt(stripe, path, event); if (s) pickId(s.id); });
  return el("div", { class: "path" },
    el("div", { class: "name" }, el("button", { type: "button", class: "link mono", title: "show this stretch of time", onclick: () => pickPath(path) }, path.id), el("small", {}, facts.filter(Boolean).join(" · "))),
    stripe,
    el("div", { class: "won" }, "won if free: ", Object.entries(path.if_free || {}).slice(0, 5).map(([name, ticks]) => el("span", {}, swatch(colour(name)), `${name} ${time(ticks)} `, el("b", {}, percent(ticks, whole))))));
}
function pickPath(path) {
  const row = rowOf(path.id);
  if (row >= 0) state.row = row;
  if (path.kind) {
    const room = (path.end - path.start) * 0.05 + 1;
    zoom(path.start - room, path.end + room);
  } else zoom(...R.span);
  if (row >= 0) showSequence();
}
function paintStripe(c, path) {
  const ratio = window.devicePixelRatio || 1, w = c.clientWidth, h = c.clientHeight, g = c.getContext("2d");
  c.width = Math.round(w * ratio);
  c.height = Math.round(h * ratio);
  g.scale(ratio, ratio);
  g.fillStyle = colours.grid;
  g.fillRect(0, 0, w, h);
  const per = w / Math.max(path.end - path.start, 1);
  for (const s of path.segments) {
    g.globalAlpha = OPACITY[s.what] || 1;
    g.fillStyle = colour(service(s.component));
    g.fillRect((s.start - path.start) * per, 0, Math.max((s.end - s.start) * per, 0.4), h);
  }
  g.globalAlpha = 1;
}
function segmentAt(c, path, event) {
  const box = c.getBoundingClientRect(), per = (path.end - path.start) / Math.max(box.width, 1);
  const t = path.start + (event.clientX - box.left) * per;
  let best = null;
  for (const s of path.segments) {
    const off = t < s.start ? s.start - t : t > s.end ? t - s.end : 0;
    if (off < 2 * per && (!best || off < best.off)) best = { ...s, off };
  }
  return best;
}
function stripeTip(path, s) {
  if (!s) return "";
  const whole = Math.max(path.end - path.start, 1);
  return `${s.component}: ${s.what} ${time(s.end - s.start)} (${percent(s.end - s.start, whole)})\n${s.id} ${s.kind}\n${time(s.start - path.start)} after the start`;
}
