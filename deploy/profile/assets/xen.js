// Of a real Xen: what each hypercall did, and what else happened.

const RUNS = ["0", "1", "2-8", "9-64", "65-512", "513+"], RUN_ENDS = [0, 1, 8, 64, 512];
const LONGEST_RUNS = 50;
const hypercallName = (key) => D.hypercalls[key] || (/^\d+$/.test(key) ? `hypercall ${key}` : key);

// Calls, updates and runs by hypercall: of the whole run from the report, of a part from the rows.
function hypercallsInSight() {
  if ((isWhole() && !state.domid) || !H.rows) return R.hypercalls || {};
  const found = {}, [first, end] = rowsInSight(H.time);
  for (let i = first; i < end; i++) {
    const c = (found[H.op[i]] = found[H.op[i]] || { count: 0, updates: 0, runs: {} }), size = RUN_ENDS.findIndex((most) => H.updates[i] <= most);
    const name = RUNS[size < 0 ? RUN_ENDS.length : size];
    c.count += H.stands[i];
    c.updates += H.updates[i];
    c.runs[name] = (c.runs[name] || 0) + H.stands[i];
  }
  return found;
}
function drawHypercalls() {
  $("hypercalls").hidden = !Object.keys(R.hypercalls || {}).length;
  if ($("hypercalls").hidden) { $("runs").hidden = true; return; }
  const calls = Object.entries(hypercallsInSight()).sort((a, b) => b[1].updates - a[1].updates || b[1].count - a[1].count);
  const most = Math.max(1, ...calls.flatMap(([, c]) => RUNS.map((s) => c.runs[s] || 0)));
  const part = isWhole() ? "" : `, in sight${H.complete ? "" : " (estimated)"}`;
  $("hypercalls-title").textContent = `by how many p2m updates one made${part}${state.domid ? "; of all domains" : ""}`;
  const heads = ["hypercall", "calls", "p2m updates", ...RUNS].map((h, i) => el("th", { class: i ? "" : "t", "data-tip": i > 2 ? `hypercalls that made ${h} p2m updates` : null }, h));
  listing("hypercalls-body", {
    heads, rows: calls, every: true, height: 26,
    row: ([name, c]) => [{}, [el("td", { class: "t mono" }, hypercallName(name)), el("td", {}, count(c.count)), el("td", {}, count(c.updates)),
      RUNS.map((s) => el("td", { class: "cell", style: c.runs[s] ? `--heat:${(18 + 62 * (Math.log1p(c.runs[s]) / Math.log1p(most))).toFixed(0)}%` : null }, c.runs[s] ? count(c.runs[s]) : ""))]],
  });
  drawRuns();
}
// The hypercalls in sight that made the most updates.
function drawRuns() {
  const [first, end] = rowsInSight(H.time), rows = [];
  for (let i = first; i < end; i++) if (H.updates[i]) rows.push(i);
  rows.sort((a, b) => H.updates[b] - H.updates[a]);
  $("runs").hidden = !H.updates.some((n) => n);
  const most = rows.length ? H.updates[rows[0]] : 1;
  listing("runs-body", {
    heads: [["at", 0], ["pcpu", 0], ["by", 1], ["hypercall", 1], ["p2m updates", 0]].map(([h, text]) => el("th", { class: text ? "t" : "" }, h)),
    rows: rows.slice(0, LONGEST_RUNS), height: 26,
    row: (i) => [{}, [el("td", {}, moment(H.time[i])), el("td", {}, H.cpu[i]), el("td", { class: "t" }, H.domid[i] < 0 ? "unknown" : `d${H.domid[i]}v${H.vcpu[i]}`), el("td", { class: "t mono" }, hypercallName(H.op[i])),
      el("td", { class: "b" }, el("i", { style: `width:${(100 * H.updates[i]) / most}%` }), el("span", {}, count(H.updates[i])))]],
    pick: (i) => { const room = (state.t1 - state.t0) / 20; zoom(H.time[i] - room, H.time[i] + room); },
  });
}
function drawEvents() {
  const found = Object.entries(R.events || {}).sort((a, b) => b[1] - a[1]);
  $("events").hidden = R.format !== "xentrace" || !found.length;
  $("side").hidden = $("events").hidden && $("runs").hidden;
  if ($("events").hidden) return;
  const most = Math.max(1, ...found.map(([, n]) => n));
  listing("events-body", {
    heads: [el("th", { class: "t" }, "event"), el("th", {}, "records")], rows: found, every: true, height: 26,
    row: ([name, n]) => [{}, [el("td", { class: "t mono" }, name), el("td", { class: "b" }, el("i", { style: `width:${(100 * Math.log1p(n)) / Math.log1p(most)}%` }), el("span", {}, count(n)))]],
  });
}
