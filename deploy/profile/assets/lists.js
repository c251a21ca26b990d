// Lists of any length: only the rows in view are elements.

const lists = {};
const OVERSCAN = 8;

// `rows` of any kind; `row` gives [attributes, cells]; `every`: short enough to show all of.
function listing(id, { heads, rows, row, pick, height, every = false }) {
  const box = $(id), kept = lists[id] || (lists[id] = { cursor: 0 });
  Object.assign(kept, { rows, row, pick, height, every });
  if (!kept.body) {
    kept.head = el("tr");
    kept.body = el("tbody");
    kept.table = el("table", {}, el("thead", {}, kept.head), kept.body);
    kept.space = el("div", { class: "space" }, kept.table);
    listenList(box, kept);
  }
  if (kept.space.parentNode !== box) box.replaceChildren(kept.space);
  if (pick) box.tabIndex = 0;
  kept.head.replaceChildren(...heads.flat().filter(Boolean));
  kept.drawn = "";
  paintList(box, kept);
}
function listenList(box, kept) {
  box.addEventListener("scroll", () => paintList(box, kept));
  kept.body.addEventListener("click", (event) => {
    const tr = event.target.closest("tr");
    if (tr && tr.dataset.at && kept.pick && !event.target.closest("a, button")) kept.pick(kept.rows[Number(tr.dataset.at)]);
  });
  box.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (event.target !== box || (!by && event.key !== "Enter") || !kept.pick || !kept.rows.length) return;
    event.preventDefault();
    event.stopPropagation();
    if (!by) { kept.pick(kept.rows[kept.cursor]); return; }
    kept.cursor = Math.max(0, Math.min(kept.rows.length - 1, kept.cursor + by));
    showRow(box, kept, kept.cursor);
  });
}
function showRow(box, kept, at) {
  const y = at * kept.height;
  if (y < box.scrollTop) box.scrollTop = y;
  else if (y > box.scrollTop + box.clientHeight - 3 * kept.height) box.scrollTop = y - box.clientHeight + 3 * kept.height;
  kept.cursor = at;
  kept.drawn = "";
  paintList(box, kept);
}
function paintList(box, kept) {
  const nr = kept.rows.length;
  let first = 0, end = nr;
  if (!kept.every) {
    const top = Math.min(box.scrollTop, Math.max(0, nr * kept.height - box.clientHeight));
    first = Math.max(0, Math.floor(top / kept.height) - OVERSCAN);
    end = Math.min(nr, first + Math.ceil((box.clientHeight || 380) / kept.height) + 2 * OVERSCAN);
    kept.space.style.height = `${(nr + 1) * kept.height + 8}px`;
    kept.table.style.marginTop = `${first * kept.height}px`;
  }
  const drawn = `${first} ${end}`;
  if (kept.drawn === drawn) return;
  kept.drawn = drawn;
  const made = [];
  for (let at = first; at < end; at++) {
    const [attributes, cells] = kept.row(kept.rows[at]), tr = el("tr", { ...attributes, "data-at": at }, cells);
    tr.style.height = `${kept.height}px`;
    if (kept.pick) tr.classList.add("picks");
    if (at === kept.cursor) tr.classList.add("cursor");
    made.push(tr);
  }
  if (!nr) made.push(el("tr", {}, el("td", { class: "t none", colspan: kept.head.children.length }, "none in sight")));
  kept.body.replaceChildren(...made);
}

// ---- messages and updates -----------------------------------------------------------------

function touches(gfn, nr, order) {
  const base = superpage(state.gfn), last = gfn + Math.max(1, nr) * Math.pow(2, Math.max(order, 0));
  return gfn < base + 512 && last > base;
}
function messagesInSight() {
  const found = [], kind = state.kind ? D.kinds.indexOf(state.kind) : NONE, domid = chosenDomid();
  for (let i = 0; i < M.rows; i++) {
    if (M.started[i] > state.t1 || endedAt(i) < state.t0) continue;
    if (kind >= 0 && M.kind[i] !== kind) continue;
    if (domid >= 0 && M.domid[i] !== domid) continue;
    if (state.gfn >= 0 && !(M.gfn[i] && touches(M.gfn[i] - 1, M.nr[i], M.order[i]))) continue;
    found.push(i);
  }
  const by = { size: M.bytes, queued: M.queue, busy: M.busy }[state.by];
  if (by) found.sort((a, b) => (by[b] - by[a]) * (state.byDown ? 1 : -1));
  else if (state.by === "latency") found.sort((a, b) => (latencyOf(b) - latencyOf(a)) * (state.byDown ? 1 : -1));
  return found;
}
const MESSAGE_HEADS = [["began", 0], ["message", 1], ["to", 1], ["kind", 1], ["domid", 0], ["what", 1], ["size", 0], ["queued", 0], ["busy", 0], ["latency", 0]];
let listedRow = NONE; // the row that the list was scrolled to
function drawMessages() {
  $("messages").hidden = !M.rows;
  if (!M.rows) return;
  const found = messagesInSight();
  const words = [M.complete ? plural(found.length, "message") : `${plural(found.length, "message")} of the ${count(M.rows)} in this page`, "in sight"];
  if (state.kind) words.push(`, ${state.kind}`);
  if (state.gfn >= 0) words.push(`, naming the superpage of ${hex(state.gfn)}`);
  $("messages-count").textContent = words.join(" ").replace(/ ,/g, ",") + inSteps();
  const heads = MESSAGE_HEADS.map(([name, text]) => {
    const sorts = ["began", "size", "queued", "busy", "latency"].includes(name), key = name === "began" ? "" : name;
    const again = () => { state.byDown = state.by === key ? !state.byDown : true; state.by = key; drawMessages(); };
    return el("th", { class: text ? "t" : "", "aria-sort": sorts && state.by === key ? (key && state.byDown ? "descending" : "ascending") : null }, sorts ? el("button", { type: "button", onclick: again }, name) : name);
  });
  listing("messages-table", { heads, rows: found, row: messageRow, pick: pickRow, height: 25 });
  if (state.row === listedRow) return;
  listedRow = state.row;
  const at = found.indexOf(state.row);
  if (at >= 0) showRow($("messages-table"), lists["messages-table"], at);
}
function messageRow(i) {
  const text = (words, kind = "t") => el("td", { class: kind }, words);
  return [{ class: state.row === i ? "on" : null }, [
    text(moment(M.started[i]), ""), text(idOf(i), "t mono"), text(D.names[M.dst[i]], "t mono"), text(D.kinds[M.kind[i]]),
    text(M.domid[i] >= 0 ? M.domid[i] : "", ""), text(detail(i)), text(bytes(M.bytes[i]), ""), text(span(M.queue[i]), ""),
    text(span(M.busy[i]), ""), text(M.lasted[i] ? span(latencyOf(i)) : "never answered", ""),
  ]];
}
function detail(i) {
  const words = [];
  if (M.isReply[i]) words.push(M.asked[i] ? `answers ${idOf(M.asked[i] - 1)}` : "an answer");
  if (M.order[i] >= 0) words.push(orderName(M.order[i]));
  if (M.nr[i] >= 0) words.push(`×${count(M.nr[i])}`);
  if (M.gfn[i]) words.push(`gfn ${hex(M.gfn[i] - 1)}`);
  if (M.rc[i]) words.push(`rc ${M.rc[i]}`);
  return words.join(" ");
}

// Updates and the other events of memory in one list: rows of U, and ~rows of E.
function storyInSight() {
  const found = [], domid = chosenDomid();
  const fits = (t, d) => t >= state.t0 && t <= state.t1 && (domid < 0 || d === domid);
  let e = 0;
  const eventsUntil = (t) => {
    for (; e < E.rows && E.time[e] <= t; e++) if (fits(E.time[e], E.domid[e]) && (state.gfn < 0 || (E.gfn[e] && touches(E.gfn[e] - 1, 1, E.order[e])))) found.push(~e);
  };
  const [first, end] = rowsInSight(U.time);
  for (let i = first; i < end; i++) {
    eventsUntil(U.time[i]);
    if (fits(U.time[i], U.domid[i]) && (state.gfn < 0 || touches(U.gfn[i], 1, U.order[i]))) found.push(i);
  }
  eventsUntil(Infinity);
  return found;
}
function drawUpdates() {
  $("updates").hidden = !U.rows && !E.rows;
  if ($("updates").hidden) return;
  const found = storyInSight(), sampled = U.complete ? "" : `; this page holds ${count(U.rows)} of ${count(U.of)} updates${D.flagged && U.brokeEach === 1 ? ", all that shattered among them" : ""}`;
  const where = state.gfn >= 0 ? `, in the superpage of ${hex(state.gfn)}` : "; search a gfn to see one superpage's story";
  $("updates-count").textContent = `${plural(found.length, "record")} in sight${where}${sampled}`;
  const heads = [["at", 0], ["domid", 0], ["event", 1], ["order", 1], ["type", 1], ["mfn", 1], [R.format === "xentrace" ? "during" : "because of", 1], [R.format === "xentrace" ? "pcpu" : "shard", 0], ["broke", 1], ["gfn", 1]];
  listing("updates-table", { heads: heads.map(([name, text]) => el("th", { class: text ? "t" : "" }, name)), rows: found, row: storyRow, height: 25, pick: (i) => { const gfn = i >= 0 ? U.gfn[i] : E.gfn[~i] - 1; if (gfn >= 0) pickGfn(gfn); } });
}
function broke(i) {
  const flags = U.shatters[i];
  if (!flags) return "";
  const words = [];
  if (flags & 2) words.push("1G → 2M");
  if (flags & 1) words.push("2M → 4K");
  if (flags & 4) words.push("all → 4K");
  return `▼ ${words.join(", ")}`;
}
function storyRow(i) {
  const text = (words, kind = "t") => el("td", { class: kind }, words);
  if (i < 0) {
    const e = ~i, gfn = E.gfn[e];
    return [{ class: "event" }, [text(moment(E.time[e]), ""), text(E.domid[e] >= 0 ? E.domid[e] : "", ""), text(D.events[E.event[e]] || hex(E.event[e])), text(E.order[e] >= 0 ? orderName(E.order[e]) : ""), text(""), text(""), text(""), text(E.cpu[e], ""), text(""), text(gfn ? hex(gfn - 1) : "", "t mono")]];
  }
  return [{ class: U.shatters[i] ? "broken" : null }, [
    text(moment(U.time[i]), ""), text(U.domid[i], ""), text("set_p2m_entry"), text(orderName(U.order[i])), text(D.types[U.type[i]] || `type ${U.type[i]}`),
    text(U.mfn[i] ? hex(U.mfn[i] - 1) : "none", "t mono"), el("td", { class: "t" }, madeBy(i)), text(U.cpu[i], ""), text(broke(i), "t broke"), text(hex(U.gfn[i]), "t mono"),
  ]];
}
function madeBy(i) {
  const by = U.by[i];
  if (!by) return "";
  if (R.format === "xentrace") return D.hypercalls[by - 1] || `hypercall ${by - 1}`;
  return el("button", { type: "button", class: "link mono", onclick: () => pickRow(by - 1) }, idOf(by - 1));
}
