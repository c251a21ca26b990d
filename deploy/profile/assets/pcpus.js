// Of a real Xen: who ran on which pcpu. Spans where they are wide enough, else the share of each pixel.

const IDLE = 0x7ff0, CPU_HEIGHT = 40;
let running = null; // what was drawn last, for the tip

const colourOfDomain = (d) => (d === 0 ? colours.grey : d < 0 ? colours.pale : colours[SERIES_COLOURS[(d - 1) % 6]]);
// By pcpu and domain, the share of each bin during which it ran.
function sharesInSight(nr) {
  const wide = (state.t1 - state.t0) / nr, found = new Map();
  const end = nrBefore(P.start, state.t1, true);
  for (let i = 0; i < end; i++) {
    if (P.end[i] < state.t0 || P.domid[i] >= IDLE) continue;
    const key = P.cpu[i] * 0x10000 + P.domid[i] + 1;
    if (!found.has(key)) found.set(key, { cpu: P.cpu[i], domid: P.domid[i], bins: new Float64Array(nr) });
    const { bins } = found.get(key), from = Math.max(P.start[i], state.t0) - state.t0, to = Math.min(P.end[i], state.t1) - state.t0;
    for (let b = Math.floor(from / wide); b < nr && b * wide < to; b++) bins[b] += (P.stands[i] * (Math.min(to, (b + 1) * wide) - Math.max(from, b * wide))) / wide;
  }
  return [...found.values()].sort((a, b) => a.domid - b.domid);
}
function drawPcpus() {
  $("pcpus").hidden = !P.rows;
  if (!P.rows) return;
  const cpus = [...new Set([...Object.keys(R.pcpus || {}).map(Number), ...P.cpu])].sort((a, b) => a - b);
  $("pcpus-plot").style.height = `${34 + CPU_HEIGHT * cpus.length}px`;
  const p = canvas("pcpus-plot", { right: 10 }), tall = (p.bottom - p.top) / cpus.length, nr = Math.max(1, Math.floor(p.right - p.left));
  const shares = sharesInSight(nr), filled = new Map(cpus.map((cpu) => [cpu, new Float64Array(nr)])), busy = new Map(cpus.map((cpu) => [cpu, 0]));
  timeAxis(p);
  for (const { cpu, domid, bins } of shares) {
    const base = filled.get(cpu), bottom = p.top + (cpus.indexOf(cpu) + 1) * tall - 3, high = tall - 6;
    p.g.fillStyle = colourOfDomain(domid);
    for (let b = 0; b < nr; b++) {
      const share = Math.min(bins[b], 1 - base[b]);
      if (share <= 0) continue;
      p.g.fillRect(p.left + b, bottom - (base[b] + share) * high, 1, Math.max(share * high, 0.5));
      base[b] += share;
      busy.set(cpu, busy.get(cpu) + share / nr);
    }
  }
  p.g.fillStyle = colours.dim;
  p.g.textAlign = "right";
  cpus.forEach((cpu, i) => p.g.fillText(`pcpu ${cpu}`, p.left - 8, p.top + (i + 0.5) * tall));
  const whole = isWhole(), of = (cpu) => (whole ? ((R.pcpus || {})[cpu] || { busy: 0 }).busy : busy.get(cpu));
  const words = `busy${whole ? " in all" : " in sight"}: ${cpus.map((cpu) => `pcpu ${cpu} ${percent(of(cpu))}`).join(", ")}${P.complete || whole ? "" : ", estimated from a sample of the spans"}`;
  legend("pcpus-legend", [...[...new Set(shares.map((s) => s.domid))].map((d) => [d < 0 ? "unknown" : `d${d}`, colourOfDomain(d)]), [words, ""]]);
  running = { cpus, tall, p, shares, nr };
}
function pcpusTip(t, event) {
  if (!running) return "";
  const y = event.clientY - $("pcpus-plot").getBoundingClientRect().top, cpu = running.cpus[Math.floor((y - running.p.top) / running.tall)];
  if (cpu === undefined) return "";
  const end = nrBefore(P.start, t, true), head = `pcpu ${cpu} at ${moment(t)}`;
  for (let i = end - 1; i >= 0 && P.complete; i--) {
    if (P.cpu[i] !== cpu) continue;
    if (P.end[i] >= t && P.domid[i] < IDLE) return `${head}\nd${P.domid[i]}v${P.vcpu[i]} for ${time(P.end[i] - P.start[i])}`;
    break;
  }
  const bin = Math.min(running.nr - 1, Math.floor(((t - state.t0) / (state.t1 - state.t0)) * running.nr));
  const near = running.shares.filter((s) => s.cpu === cpu && s.bins[bin] > 0).map((s) => `${s.domid < 0 ? "unknown" : `d${s.domid}`} ${percent(Math.min(1, s.bins[bin]))} of this pixel`);
  return [head, ...(near.length ? near : ["idle"])].join("\n");
}
