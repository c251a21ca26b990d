// Messages by kind and by service, and how the latency of one kind is spread.

// What percentiles may be of: [name, of a row, which messages have it].
const TIMES = {
  latency: ["Latency", (i) => latencyOf(i), (i) => M.lasted[i] && !M.isReply[i], "from when it came into the mailbox until it was answered"],
  queue: ["Queue time", (i) => M.queue[i], () => true, "in the mailbox"],
  service: ["Service time", (i) => M.busy[i], () => true, "during which its handler ran"],
  awaiting: ["Awaiting others", (i) => awaitingOf(i), (i) => M.lasted[i], "during which its handler waited for answers"],
  lock: ["Waiting for locks", (i) => M.lock_wait[i], () => true, "during which its handler waited for locks"],
};
const timesOf = (k) => (state.of === "latency" ? k : k[state.of]);
const COLUMNS = [
  ["count", (k) => k.count, count, "messages"], ["bytes", (k) => k.bytes, bytes, "as encoded, envelopes included"],
  ...["p50", "p90", "p99", "max"].map((name) => [name, (k) => timesOf(k)[name], span, null]),
  ["queued", (k) => k.queue.total, span, "in mailboxes, all together"], ["service", (k) => k.service.total, span, "during which handlers ran, all together"],
  ["awaiting", (k) => k.awaiting.total, span, "during which handlers waited for answers, all together"], ["locks", (k) => k.lock.total, span, "during which handlers waited for locks, all together"],
];
const SHARES = [["queued", (k) => k.queue, "sky"], ["service", (k) => k.service, "blue"], ["awaiting others", (k) => k.awaiting, "pale"], ["locks", (k) => k.lock, "red"]];
const sortWord = (chosen, down) => (chosen ? (down ? "descending" : "ascending") : null);

function drawKinds() {
  $("kinds").hidden = !Object.keys(R.messages).length;
  if ($("kinds").hidden) return;
  press(all("[data-group]"), (button) => button.dataset.group === state.group);
  press(all("[data-of]"), (button) => button.dataset.of === state.of);
  const { figures, part, rows: nr } = figuresInSight(state.group), rows = Object.entries(figures);
  const about = part ? (M.complete ? "begun in sight; " : `begun in sight, estimated from the ${count(nr)} of them in this page; `) : "";
  $("kinds-title").textContent = `${about}${state.group === "messages" ? "click a row to see only its messages" : "what each service was sent"}`;
  $("kinds-title").append(inSteps());
  const value = (COLUMNS.find(([name]) => name === state.sort) || COLUMNS[7])[1];
  rows.sort((a, b) => (state.sort === "name" ? (a[0] < b[0] ? 1 : -1) : value(b[1]) - value(a[1])) * (state.down ? 1 : -1));
  const tops = COLUMNS.map(([, get]) => Math.max(1e-9, ...rows.map(([, k]) => get(k))));
  const head = (name, text, tip) => el("th", { class: name === "name" ? "t" : "", "data-tip": tip, "aria-sort": sortWord(state.sort === name, state.down) },
    el("button", { type: "button", onclick: () => { state.down = state.sort === name ? !state.down : true; state.sort = name; drawKinds(); } }, text));
  const heads = [head("name", state.group === "messages" ? "kind" : "service"), ...COLUMNS.map(([name, , , tip]) => head(name, name, tip === null ? `${name} of a message's ${TIMES[state.of][0].toLowerCase()}: ${TIMES[state.of][3]}` : tip))];
  heads.splice(3, 0, el("th", { class: "t" }, "spent on"));
  const row = ([name, k]) => {
    const cells = COLUMNS.map(([, get, show], i) => el("td", { class: "b" }, el("i", { style: `width:${(100 * get(k)) / tops[i]}%` }), el("span", {}, get(k) ? show(get(k)) : "0")));
    cells.splice(2, 0, el("td", { class: "t" }, shareBar(k)));
    return [{ class: state.kind === name ? "on" : null }, [el("td", { class: "t mono" }, name), ...cells]];
  };
  listing("kinds-table", { heads, rows, row, height: 26, pick: ([name]) => pickKind(name), every: true });
  legend("kinds-legend", SHARES.map(([name, , c]) => [name, colours[c]]));
  drawLatency();
}
function shareBar(k) {
  const parts = SHARES.map(([name, get, c]) => [name, get(k).total, colours[c]]), whole = parts.reduce((n, [, ticks]) => n + ticks, 0);
  const words = parts.filter(([, ticks]) => ticks).map(([name, ticks]) => `${name} ${time(ticks)} (${percent(ticks, whole)})`).join("\n");
  return el("div", { class: "share", "data-tip": words, role: "img", "aria-label": words }, parts.map(([, ticks, c]) => ticks > 0 && el("i", { style: `flex:${ticks} 0 0;background:${c}` })));
}
function pickKind(name) {
  if (state.group !== "messages") return;
  state.kind = state.kind === name ? "" : name;
  redraw();
}

// On a logarithmic scale, with the percentiles marked.
const SPREAD = 64;
let spread = null;
function drawLatency() {
  const kind = D.kinds.indexOf(state.kind), domid = chosenDomid(), rows = [], [first, end] = rowsInSight(M.started);
  const [title, of, has] = TIMES[state.of];
  for (let i = first; i < end; i++) {
    if (has(i) && (kind < 0 || M.kind[i] === kind) && (domid < 0 || M.domid[i] === domid)) rows.push(i);
  }
  const values = Float64Array.from(rows, of), stands = Float64Array.from(rows, (i) => M.stands[i]);
  const p = canvas("latency-plot", { right: 10 }), { g } = p, what = state.kind || (state.of === "latency" ? "requests of all kinds" : "messages of all kinds");
  $("latency-name").textContent = title;
  p.top = 18;
  spread = null;
  $("latency-title").textContent = `${what}: ${values.length ? `${plural(values.length, state.of === "latency" ? "answered message" : "message")}${M.complete ? "" : " of this page, each for those it stands for"}` : "none in sight"}`;
  if (!values.length) return;
  const figures = percentiles(values.slice(), M.complete ? null : stands), words = ["p50", "p90", "p99", "max"].map((name) => `${name} ${time(figures[name])}`).join(", "), low = Math.max(1, values.reduce((a, b) => Math.min(a, b), Infinity)), high = Math.max(figures.max, low * 1.01);
  $("latency-title").textContent += `; ${words}; logarithmic`;
  const bins = new Float64Array(SPREAD), place = (v) => Math.log(Math.max(v, low) / low) / Math.log(high / low);
  values.forEach((v, i) => (bins[Math.min(SPREAD - 1, Math.floor(place(v) * SPREAD))] += stands[i]));
  const top = scale(Math.max(...bins), { most: 3 }), wide = (p.right - p.left) / SPREAD;
  valueAxis(p, top, shortCount, "");
  g.fillStyle = colours.dim; g.textAlign = "left"; g.fillText("messages", p.left, p.top - 9);
  g.fillStyle = colours.blue;
  bins.forEach((n, i) => n && g.fillRect(p.left + i * wide, p.bottom - (n / top.top) * (p.bottom - p.top), Math.max(wide - 1, 1), (n / top.top) * (p.bottom - p.top)));
  g.fillStyle = colours.dim;
  g.textAlign = "left"; g.fillText(time(low), p.left, p.bottom + 11);
  g.textAlign = "right"; g.fillText(time(high), p.right, p.bottom + 11);
  let taken = p.left + g.measureText("messages").width + 6;
  for (const name of ["p50", "p90", "p99"]) {
    const x = p.left + place(figures[name]) * (p.right - p.left), text = name;
    g.strokeStyle = g.fillStyle = colours.alarm;
    g.beginPath(); g.moveTo(x, p.top - 4); g.lineTo(x, p.bottom); g.stroke();
    const room = g.measureText(text).width, left = Math.min(x + 3, p.right - room);
    if (left >= taken) { g.textAlign = "left"; g.fillText(text, left, p.top - 9); taken = left + room + 8; }
  }
  spread = { bins, low, high, p };
}
function latencyTip(event) {
  if (!spread) return "";
  const { bins, low, high, p } = spread, x = event.clientX - $("latency-plot").getBoundingClientRect().left;
  const i = Math.floor(((x - p.left) / (p.right - p.left)) * SPREAD), at = (k) => time(Math.round(low * Math.pow(high / low, k / SPREAD)));
  return i >= 0 && i < SPREAD ? `${at(i)} to ${at(i + 1)}\n${plural(bins[i], "message")}` : "";
}
