// What happened to memory, in numbers: of the whole run from the report, of a part from the rows.

const byOrder = (found, order, n) => (found[order] = (found[order] || 0) + n);
function factsReported() {
  const chosen = state.domid ? [R.domains[state.domid]] : Object.values(R.domains);
  const add = (pick) => chosen.reduce((into, d) => {
    for (const [key, n] of Object.entries(pick(d) || {})) byOrder(into, key, n);
    return into;
  }, {});
  const total = (pick) => chosen.reduce((n, d) => n + (pick(d) || 0), 0), calls = total((d) => d.populate && d.populate.calls);
  return {
    updates: add((d) => Object.fromEntries(Object.entries(d.p2m_updates || {}).map(([o, kinds]) => [o, sum(kinds)]))),
    shatters: add((d) => d.shatters), calls, half: chosen.length === 1 && calls ? chosen[0].populate.extents_per_call.p50 : null,
    most: Math.max(0, ...chosen.map((d) => (d.populate ? d.populate.extents_per_call.max : 0))),
    fallbacks: add((d) => d.populate && d.populate.fallbacks),
    unseen: total((d) => d.populate && d.populate.unknown_frames),
    faults: total((d) => d.nested_faults), down: add((d) => d.decrease_reservation), pod: add((d) => d.pod_populate),
    splintered: total((d) => d.pod_superpage_splinter), reclaimed: add((d) => d.pod_zero_reclaim),
  };
}
function factsInSight() {
  const found = { updates: {}, shatters: {}, calls: 0, half: null, most: 0, fallbacks: {}, unseen: 0, faults: 0, down: {}, pod: {}, splintered: 0, reclaimed: {} };
  const domid = chosenDomid(), [low, mid, top] = D.orders, asked = [];
  const each = (table, take) => {
    const [first, end] = table.rows ? rowsInSight(table.time) : [0, 0];
    for (let i = first; i < end; i++) if (domid < 0 || table.domid[i] === domid) take(i, table.stands[i]);
  };
  each(U, (i, n) => {
    byOrder(found.updates, U.order[i], n);
    const flags = U.shatters[i];
    if (flags & 2) byOrder(found.shatters, `${top}->${mid}`, U.brokeEach);
    if (flags & 1) byOrder(found.shatters, `${mid}->${low}`, U.brokeEach);
    if (flags & 4) byOrder(found.shatters, `${mid}->${low}`, U.brokeEach * Math.pow(2, top - mid));
  });
  each(C, (i, n) => { found.calls += n; asked.push(C.asked[i]); if (C.fell[i]) byOrder(found.fallbacks, `${C.fell[i] - 1}->${C.order[i]}`, 1); });
  each(E, (i, n) => {
    const event = D.events[E.event[i]], into = { decrease_reservation: "down", pod_populate: "pod", pod_zero_reclaim: "reclaimed" }[event];
    if (into) byOrder(found[into], E.order[i], n);
    if (event === "npf") found.faults += n;
    if (event === "pod_superpage_splinter") found.splintered += n;
  });
  const { p50, max } = percentiles(Float64Array.from(asked));
  return { ...found, half: state.domid || domids.length === 1 ? p50 : null, most: max };
}
function drawDomainFacts() {
  const whole = isWhole(), f = whole ? factsReported() : factsInSight();
  const shatters = whole || D.flagged ? listed(f.shatters, stepName) || "none" : "not known of a part";
  const facts = [["p2m updates", listed(f.updates) || "none"], ["shatters", shatters]];
  if (f.calls) {
    facts.push(["populate calls", `${count(f.calls)}, extents a call ${f.half === null ? "" : `p50 ${count(f.half)}, `}max ${count(f.most)}`]);
    facts.push(["fallbacks in the ladder", listed(f.fallbacks, stepName) || "none"]);
  }
  if (f.unseen) facts.push(["populated by calls that were not traced", memory(f.unseen)]);
  if (f.faults) facts.push(["nested faults", count(f.faults)]);
  if (sum(f.down)) facts.push(["decrease_reservation", listed(f.down)]);
  if (sum(f.pod)) facts.push(["populate on demand", `${listed(f.pod)} populated, ${count(f.splintered)} splintered, ${listed(f.reclaimed) || "none"} reclaimed`]);
  const of = whole ? "" : `in sight${U.complete && E.complete ? "" : " (estimated)"}:`;
  $("domain-facts").replaceChildren(of, ...facts.map(([name, text]) => el("span", {}, `${name} `, el("b", {}, text))));
}

// The superpages with the most updates, of what is in sight.
function hottestInSight(domid) {
  const from = domid ? [domid] : domids, found = [];
  if (isWhole()) {
    for (const d of from) for (const each of R.domains[d].hottest || []) if (each.updates) found.push([d, each]);
  } else {
    const bases = new Map(), number = domid ? Number(domid) : NONE, [first, end] = U.rows ? rowsInSight(U.time) : [0, 0];
    for (let i = first; i < end; i++) {
      if (number >= 0 && U.domid[i] !== number) continue;
      const gfn = superpage(U.gfn[i]), key = `${U.domid[i]} ${gfn}`;
      if (!bases.has(key)) { bases.set(key, { gfn, updates: 0, shatters: 0 }); found.push([String(U.domid[i]), bases.get(key)]); }
      bases.get(key).updates += U.stands[i];
      if (U.shatters[i]) bases.get(key).shatters += U.brokeEach;
    }
  }
  return found.sort((a, b) => b[1].updates - a[1].updates).slice(0, 20);
}
function drawHottest(domid) {
  const top = hottestInSight(domid), most = top.length ? top[0][1].updates : 1;
  const where = `${isWhole() ? "" : " in sight"}${isWhole() || U.complete ? "" : ", estimated"}`;
  $("hottest").replaceChildren(
    el("small", {}, top.length ? `the ${plural(top.length, "superpage")} with the most updates${where} (▼ shatters)` : "no superpage was updated here"),
    el("div", { class: "chips" }, top.map(([d, each]) => el("button", {
      type: "button", class: "chip mono", "aria-pressed": String(state.gfn >= 0 && superpage(state.gfn) === each.gfn && (!domid || domid === d)),
      style: `--share:${((100 * each.updates) / most).toFixed(1)}%`,
      title: `${domainName(d)}, ${hex(each.gfn)}: ${plural(each.updates, "update")}, ${plural(each.shatters, "shatter")}`,
      onclick: () => { if (!domid) setDomid(d); pickGfn(each.gfn); },
    }, domid ? "" : el("b", {}, `d${d} `), `${hex(each.gfn)} `, el("span", {}, count(each.updates)), each.shatters ? el("em", {}, ` ▼${count(each.shatters)}`) : null))),
  );
}
