// Of a real Xen: what each hypercall did, what else happened, and who ran on which pcpu.

const RUNS = ["0", "1", "2-8", "9-64", "65-512", "513+"];
const IDLE = 0x7ff0;

function drawHypercalls() {
  const calls = Object.entries(R.hypercalls || {});
  $("hypercalls").hidden = !calls.length;
  if (!calls.length) return;
  calls.sort((a, b) => b[1].updates - a[1].updates || b[1].count - a[1].count);
  const most = Math.max(1, ...calls.flatMap(([, c]) => RUNS.map((s) => c.runs[s] || 0)));
  const heads = ["hypercall", "calls", "p2m updates", ...RUNS].map((h, i) => el("th", { class: i ? "" : "t" }, h));
  listing("hypercalls-body", {
    heads, rows: calls, every: true, height: 26,
    row: ([name, c]) => [{}, [el("td", { class: "t mono" }, name), el("td", {}, count(c.count)), el("td", {}, count(c.updates)),
      RUNS.map((s) => el("td", { class: "cell", style: c.runs[s] ? `--heat:${(18 + 62 * (Math.log1p(c.runs[s]) / Math.log1p(most))).toFixed(0)}%` : null }, c.runs[s] ? count(c.runs[s]) : ""))]],
  });
}
function drawEvents() {
  const found = Object.entries(R.events || {}).sort((a, b) => b[1] - a[1]);
  $("events").hidden = R.format !== "xentrace" || !found.length;
  if ($("events").hidden) return;
  const most = Math.max(1, ...found.map(([, n]) => n));
  listing("events-body", {
    heads: [el("th", { class: "t" }, "event"), el("th", {}, "records")], rows: found, every: true, height: 26,
    row: ([name, n]) => [{}, [el("td", { class: "t mono" }, name), el("td", { class: "b" }, el("i", { style: `width:${(100 * Math.log1p(n)) / Math.log1p(most)}%` }), el("span", {}, count(n)))]],
  });
}
let running = null;
function drawPcpus() {
  $("pcpus").hidden = !P.rows;
  if (!P.rows) return;
  const cpus = [...new Set(P.cpu)].sort((a, b) => a - b);
  $("pcpus-plot").style.height = `${Math.min(420, 34 + 40 * cpus.length)}px`;
  const p = canvas("pcpus-plot", { right: 10 }), tall = (p.bottom - p.top) / cpus.length, seen = new Map();
  timeAxis(p);
  clipped(p, () => {
    for (let i = 0; i < P.rows; i++) {
      if (P.end[i] < state.t0 || P.start[i] > state.t1 || P.domid[i] >= IDLE) continue;
      if (!seen.has(P.domid[i])) seen.set(P.domid[i], P.domid[i] === 0 ? colours.grey : P.domid[i] < 0 ? colours.pale : colours[SERIES_COLOURS[(P.domid[i] - 1) % 6]]);
      const x = toX(p, P.start[i]);
      p.g.fillStyle = seen.get(P.domid[i]);
      p.g.fillRect(x, p.top + cpus.indexOf(P.cpu[i]) * tall + 3, Math.max(toX(p, P.end[i]) - x, 0.8), tall - 6);
    }
  });
  p.g.fillStyle = colours.dim;
  p.g.textAlign = "right";
  cpus.forEach((cpu, i) => p.g.fillText(`pcpu ${cpu}`, p.left - 8, p.top + (i + 0.5) * tall));
  const busy = cpus.map((cpu) => `pcpu ${cpu} ${percent(((R.pcpus || {})[cpu] || { busy: 0 }).busy)}`).join(", ");
  legend("pcpus-legend", [...[...seen].sort((a, b) => a[0] - b[0]).map(([d, c]) => [d < 0 ? "unknown" : `d${d}`, c]), [`busy in all: ${busy}${P.complete ? "" : "; a sample of the spans"}`, ""]]);
  running = { cpus, tall, p };
}
function pcpusTip(t, event) {
  if (!running) return "";
  const y = event.clientY - $("pcpus-plot").getBoundingClientRect().top, cpu = running.cpus[Math.floor((y - running.p.top) / running.tall)];
  if (cpu === undefined) return "";
  for (let i = 0; i < P.rows; i++) {
    if (P.cpu[i] !== cpu || P.start[i] > t || P.end[i] < t || P.domid[i] >= IDLE) continue;
    return `pcpu ${cpu} at ${moment(t)}\nd${P.domid[i]}v${P.vcpu[i]} for ${time(P.end[i] - P.start[i])}`;
  }
  return `pcpu ${cpu} at ${moment(t)}\nidle`;
}
