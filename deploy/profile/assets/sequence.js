// One hypercall as lifelines: who asked whom for what, and what led to it.

const ARROWS = 200, ARROW_HEIGHT = 26, CHAIN = 10;
let children = null;
let diagram = "";

function childrenOf(row) {
  if (!children) {
    children = new Map();
    for (let i = 0; i < M.rows; i++) {
      if (!M.parent[i]) continue;
      const up = M.parent[i] - 1, mine = children.get(up);
      if (mine) mine.push(i); else children.set(up, [i]);
    }
  }
  return children.get(row) || [];
}
function treeOf(row) {
  const found = [row], waiting = [row];
  while (waiting.length && found.length < ARROWS) {
    for (const child of childrenOf(waiting.pop())) { found.push(child); if (!M.isReply[child]) waiting.push(child); }
  }
  return found.slice(0, ARROWS).sort((a, b) => sentAt(a) - sentAt(b) || M.src[a] - M.src[b] || M.seq[a] - M.seq[b]);
}
const rootOf = (row) => (M.isReply[row] && M.asked[row] ? M.asked[row] - 1 : row);

function drawSequence() {
  $("sequence").hidden = state.row < 0;
  if (state.row < 0) return;
  const root = rootOf(state.row), rows = treeOf(root), names = [];
  for (const i of rows) for (const n of [D.names[M.src[i]], D.names[M.dst[i]]]) if (!names.includes(n)) names.push(n);
  $("sequence-title").textContent = `${idOf(root)} ${D.kinds[M.kind[root]]}${M.domid[root] >= 0 ? `, ${domainName(M.domid[root])}` : ""}: ${plural(rows.length, "message")}${rows.length === ARROWS ? " (the first; there are more)" : ""}${M.whole[root] ? "" : " of this page's sample; profile --sequence shows all"}, ${M.lasted[root] ? time(latencyOf(root)) : "never answered"}`;
  drawLifelines(root, rows, names);
  drawCauses();
  drawChosenPath(root);
  diagram = ["sequenceDiagram", ...names.map((n, i) => `    participant c${i} as ${mermaidText(n)}`),
    ...rows.map((i) => `    c${names.indexOf(D.names[M.src[i]])}${M.isReply[i] ? "-->>" : "->>"}c${names.indexOf(D.names[M.dst[i]])}: ${mermaidText(mermaidWords(i))}`),
    ...(rows.length === ARROWS ? [`    Note over c${names.indexOf(D.names[M.dst[root]])}: cut at ${ARROWS} messages`] : [])].join("\n") + "\n";
}
// As protocols/text.py does: what Mermaid would obey, as the entity of its number.
const mermaidText = (text) => text.replace(/[#;<>&%$"`]/g, (each) => `#${each.charCodeAt(0)};`);
function mermaidWords(i) {
  return [D.kinds[M.kind[i]], `#${M.seq[i]}`, M.order[i] >= 0 && `o${M.order[i]}`, M.nr[i] >= 0 && `x${M.nr[i]}`, M.gfn[i] && `gfn ${hex(M.gfn[i] - 1)}`, M.rc[i] && `rc ${M.rc[i]}`].filter(Boolean).join(" ");
}
function drawLifelines(root, rows, names) {
  const room = $("sequence-plot").clientWidth - 110, gap = Math.max(210, Math.min(360, room / Math.max(names.length, 1)));
  const wide = gap * names.length + 110, tall = 44 + rows.length * ARROW_HEIGHT + 12, x = (name) => 90 + names.indexOf(name) * gap + gap / 2;
  const parts = [svg("defs", {}, ["ask", "answer"].map((kind) => svg("marker", { id: `head-${kind}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, orient: "auto" }, svg("path", { d: "M0 0L8 4L0 8z", class: `head ${kind}-head` }))))];
  for (const n of names) {
    parts.push(svg("line", { class: "life", x1: x(n), x2: x(n), y1: 30, y2: tall }), svg("rect", { class: "who", x: x(n) - 72, y: 4, width: 144, height: 25, rx: 6 }),
      svg("rect", { x: x(n) - 72, y: 4, width: 5, height: 25, rx: 2, fill: colour(service(n)) }), svg("text", { x: x(n), y: 21, "text-anchor": "middle" }, n));
  }
  rows.forEach((i, at) => parts.push(arrow(i, 58 + at * ARROW_HEIGHT, x(D.names[M.src[i]]), x(D.names[M.dst[i]]), sentAt(i) - sentAt(root), wide)));
  $("sequence-plot").replaceChildren(svg("svg", { width: wide, height: tall, viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": `Sequence of ${rows.length} messages` }, parts));
}
function arrow(i, y, a, b, after, wide) {
  const kind = M.isReply[i] ? "answer" : "ask", self = a === b;
  return svg("g", { class: `step${i === state.row ? " on" : ""}`, onclick: () => pickRow(i) },
    svg("rect", { class: "hit", x: 0, y: y - 16, width: wide, height: ARROW_HEIGHT }),
    svg("text", { x: 78, y: y - 1, class: "when", "text-anchor": "end" }, `+${time(after)}`),
    svg("path", { class: kind, d: self ? `M${a} ${y - 8}h30v10h-26` : `M${a} ${y}H${b + (b > a ? -1 : 1)}`, "marker-end": `url(#head-${kind})` }),
    svg("text", { class: "says", x: self ? a + 38 : (a + b) / 2, y: y - 4, "text-anchor": self ? "start" : "middle" }, `${D.kinds[M.kind[i]]} ${M.isReply[i] ? detail(i).replace(/^(answers \S+|an answer) ?/, "") : detail(i)}`),
    svg("title", {}, `${idOf(i)}\nin transit ${time(M.transit[i])}, queued ${time(M.queue[i])}, busy ${time(M.busy[i])}${M.lasted[i] && !M.isReply[i] ? `, latency ${time(latencyOf(i))}` : ""}`));
}
// What made the sender send it, back to the client, the first cause first.
function drawCauses() {
  const chain = [];
  for (let i = state.row; chain.length < CHAIN; i = M.cause[i] - 1) { chain.unshift(i); if (!M.cause[i]) break; }
  const more = M.cause[chain[0]], link = (i) => el("button", { type: "button", class: "link mono", "aria-current": String(i === state.row), onclick: () => pickRow(i) }, `${idOf(i)} ${D.kinds[M.kind[i]]}`);
  const first = more ? "… → " : M.complete ? "the client → " : "";
  $("causes").replaceChildren("What led to it: ", first, ...chain.flatMap((i, at) => (at ? [" → ", link(i)] : [link(i)])));
}
function showSequence() {
  requestAnimationFrame(() => requestAnimationFrame(() => $("sequence").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth", block: "nearest" })));
}
