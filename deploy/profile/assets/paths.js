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
    el("div", { class: "won" }, path.if_free ? "won if free: " : "spent in: ", Object.entries(path.if_free || path.by_service).sort((a, b) => b[1] - a[1]).slice(0, 5).map(([name, ticks]) => el("span", {}, swatch(colour(name)), `${name} ${time(ticks)} `, el("b", {}, percent(ticks, whole))))));
}
// The critical path of any request whose answer is in this page; as services/trace/critical.py has it.
let replies = null, toClient = null;
function replyOf(row) {
  if (!replies) { replies = new Map(); for (let i = 0; i < M.rows; i++) if (M.asked[i]) replies.set(M.asked[i] - 1, i); }
  return replies.has(row) ? replies.get(row) : NONE;
}
// What the client sends has no cause; it is taken to wait for what it got last before.
function beforeClient(row) {
  if (!toClient) toClient = Array.from({ length: M.rows }, (_, i) => i).filter((i) => service(D.names[M.dst[i]]) === "client");
  const nr = nrBefore(Float64Array.from(toClient, (i) => M.started[i]), sentAt(row));
  return nr ? toClient[nr - 1] : NONE;
}
function requestPath(root) {
  const reply = replyOf(root), rows = [];
  if (reply < 0) return null;
  for (let at = reply; at >= 0 && (at === reply || M.started[at] >= M.started[root]);) {
    rows.unshift(at);
    const mine = service(D.names[M.src[at]]) === "client";
    if (!M.cause[at] && !mine && at !== root && !M.complete) return null; // this page lacks a part of it
    at = M.cause[at] ? M.cause[at] - 1 : mine ? beforeClient(at) : NONE;
  }
  if (rows[0] !== root) rows.unshift(root);
  const start = M.started[root] - M.queue[root], segments = [], by_service = {};
  let end = start;
  rows.forEach((i, nr) => {
    const last = nr === rows.length - 1, sent = sentAt(i);
    const until = last ? [sent] : [sent, sent + M.transit[i], M.started[i], sentAt(rows[nr + 1])];
    ["idle", "transit", "queue", "service"].slice(0, until.length).forEach((what, part) => {
      if (until[part] <= end) return;
      const component = what === "transit" ? "transport" : D.names[what === "idle" ? M.src[i] : M.dst[i]], name = service(component);
      segments.push({ component, what, start: end, end: until[part], id: idOf(i), kind: D.kinds[M.kind[i]] });
      by_service[name] = (by_service[name] || 0) + until[part] - end;
      end = until[part];
    });
  });
  return { id: idOf(root), kind: D.kinds[M.kind[root]], domid: M.domid[root], start, end, messages: rows.length, segments, by_service };
}
function drawChosenPath(root) {
  const path = requestPath(root), box = $("chosen-path");
  if (path) {
    box.replaceChildren(pathRow(path));
    paintStripe(box.querySelector("canvas"), path);
  } else box.replaceChildren(empty(M.lasted[root] && !M.complete ? `Not all of its critical path is in this page; profile --critical-path ${idOf(root)} shows it.` : "It was never answered, so it has no critical path."));
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
