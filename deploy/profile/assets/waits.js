// Mailboxes, locks and fairness of what is in sight: of the whole run from the report, of a part from the rows.

function contentionInSight() {
  return !M.complete || (isWhole() && !state.domid) ? R.contention : contentionOfRows();
}
function contentionOfRows() {
  const domid = chosenDomid(), [first, end] = rowsInSight(M.started), boxes = new Map(), locks = new Map(), waited = new Map();
  const into = (map, key, i) => { if (map.has(key)) map.get(key).push(i); else map.set(key, [i]); };
  for (let i = first; i < end; i++) {
    if (M.domid[i] >= 0 && !M.isReply[i] && M.lasted[i]) into(waited, M.domid[i], i); // domains are compared with all others
    if (domid >= 0 && M.domid[i] !== domid) continue;
    into(boxes, M.shard[i], i);
    if (M.lock_wait[i] > 0) into(locks, M.dst[i], i);
  }
  return { mailboxes: [...boxes].map(mailboxOf), locks: [...locks].map(lockOf).sort((a, b) => b.total - a.total), fairness: fairnessOf(waited) };
}
// How many messages waited in the mailbox, of any domain, just before each was taken: all that came by then, less
// those taken before.
let queueSeen = null;
function waitingBefore(i) {
  if (queueSeen) return queueSeen[i];
  const rows = new Map();
  queueSeen = new Float64Array(M.rows);
  for (let m = 0; m < M.rows; m++) if (rows.has(M.shard[m])) rows.get(M.shard[m]).push(m); else rows.set(M.shard[m], [m]);
  for (const mine of rows.values()) {
    const received = Float64Array.from(mine, (m) => M.started[m] - M.queue[m]).sort();
    mine.forEach((m, taken) => (queueSeen[m] = nrBefore(received, M.started[m], true) - taken));
  }
  return queueSeen[i];
}
function mailboxOf([shard, rows]) {
  const { total, p99 } = percentiles(Float64Array.from(rows, (i) => M.queue[i]));
  const longest = rows.reduce((best, i) => (waitingBefore(i) > waitingBefore(best) ? i : best), rows[0]);
  return { shard, service: service(D.names[M.dst[rows[0]]]), messages: rows.length, wait_total: total, wait_p99: p99, longest: waitingBefore(longest), at: M.started[longest] };
}
function lockOf([dst, rows]) {
  const { total, max } = percentiles(Float64Array.from(rows, (i) => M.lock_wait[i]));
  return { name: D.names[dst], waits: rows.length, total, max };
}
function fairnessOf(waited) {
  const domains = {};
  let each = 0, squares = 0;
  for (const [domid, rows] of waited) {
    const { total, p99 } = percentiles(Float64Array.from(rows, latencyOf)), mean = total / rows.length;
    domains[domid] = { requests: rows.length, mean, p99 };
    each += mean;
    squares += mean * mean;
  }
  return { jain: squares ? (each * each) / (waited.size * squares) : 1, domains };
}
