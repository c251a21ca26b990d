// Who queued where, who waited for locks, and whether domains fared alike.

let queues = null;
function drawContention() {
  $("contention").hidden = !R.contention;
  if (!R.contention) return;
  const c = contentionInSight(), whole = c === R.contention && !(isWhole() && !state.domid);
  $("contention-title").textContent = `who waited for whom${whole ? "; tables of the whole run: this page holds a sample of the messages" : ""}`;
  drawQueues();
  const boxes = [...(c.mailboxes || [])].sort((a, b) => b.wait_total - a.wait_total), most = Math.max(1, ...boxes.map((b) => b.wait_total));
  const numbers = (words) => words.map((h, i) => el("th", { class: i ? "" : "t" }, h));
  listing("mailboxes", {
    heads: numbers(["mailbox", "messages", "waited in all", "p99", "longest queue", "at"]), rows: boxes, every: true, height: 26,
    row: (b) => [{}, [el("td", { class: "t" }, swatch(colour(b.service)), b.shard === CLIENT_SHARD ? b.service : `${b.service}, shard ${b.shard}`), el("td", {}, b.messages === undefined ? "" : count(b.messages)),
      el("td", { class: "b" }, el("i", { style: `width:${(100 * b.wait_total) / most}%` }), el("span", {}, span(b.wait_total))), el("td", {}, span(b.wait_p99)), el("td", {}, count(b.longest)), el("td", {}, moment(b.at))]],
    pick: (b) => { const wide = (R.span[1] - R.span[0]) / 40; zoom(b.at - wide, b.at + wide); },
  });
  const locks = c.locks || [];
  $("locks").replaceChildren(locks.length ? "" : empty("Nobody waited for a lock: no two hypercalls met on one."));
  if (locks.length) listing("locks", { heads: numbers(["lock of", "waits", "waited in all", "longest"]), rows: locks, every: locks.length < 9, height: 26, row: (l) => [{}, [el("td", { class: "t mono" }, l.name), el("td", {}, count(l.waits)), el("td", {}, span(l.total)), el("td", {}, span(l.max))]] });
  drawFairness(c.fairness);
}
function drawQueues() {
  $("queues").hidden = !M.rows;
  if (!M.rows) return;
  $("queues-title").textContent = `messages${state.domid ? " of all domains" : ""} on average in each ${time(Math.round((state.t1 - state.t0) / (evenEdges().length - 1)))}${M.complete ? "" : ", estimated"}`;
  queues = queuesInSight();
  const p = canvas("queues-plot", { right: 10 }), layers = queues.layers.map(([name, values], i) => [colour(name, i), values]);
  timeAxis(p);
  const top = scale(highest(layers, queues.edges) || 1, { most: 3 });
  valueAxis(p, top, (v) => trim(v));
  stacked(p, queues.edges, layers, top.top, true);
  legend("queues-legend", queues.layers.map(([name], i) => [name, colour(name, i)]));
}
function queuesTip(t) {
  if (!queues || !queues.layers.length) return "";
  const i = binAt(queues.edges, t);
  return [`at ${moment(t)}, waiting on average`, ...queues.layers.map(([name, values]) => `${name} ${trim(values[i])}`)].join("\n");
}
function drawFairness(fair) {
  const found = Object.entries((fair || {}).domains || {});
  $("fairness").replaceChildren();
  if (found.length < 2) { $("fairness").append(empty("Fairness between domains needs two of them with requests.")); return; }
  found.sort((a, b) => b[1].mean - a[1].mean);
  const most = found[0][1].mean || 1, [slow, fast] = [found[0], found[found.length - 1]];
  $("fairness").append(
    el("p", {}, "Fairness between domains: Jain's index ", el("b", {}, fair.jain.toFixed(3)), ` (1 is even). A request took ${time(Math.round(slow[1].mean))} on average for ${domainName(slow[0])}, ${time(Math.round(fast[1].mean))} for ${domainName(fast[0])}.`),
    el("div", { class: "fair" }, found.slice(0, 200).map(([d, f]) => el("button", {
      type: "button", "aria-label": `${domainName(d)}: mean ${time(Math.round(f.mean))}`, "aria-pressed": String(state.domid === d), style: `--tall:${((100 * f.mean) / most).toFixed(1)}%`,
      "data-tip": `${domainName(d)}\n${plural(f.requests, "request")}, mean ${time(Math.round(f.mean))}, p99 ${time(f.p99)}`, onclick: () => setDomid(state.domid === d ? "" : d),
    }))),
    el("small", {}, found.length > 200 ? "mean latency of a request, the 200 slowest domains" : "mean latency of a request by domain, slowest first; click one to see it alone"));
}
