// Plots over time: one axis for all of them, a brush to zoom, and a line where the pointer is.

const LEFT = 66, RIGHT = 44, BOTTOM = 20;
const timePlots = {};

function canvas(id, { left = LEFT, right = RIGHT, bottom = BOTTOM } = {}) {
  const c = $(id), ratio = window.devicePixelRatio || 1, w = c.clientWidth, h = c.clientHeight;
  const [width, height] = [Math.round(w * ratio), Math.round(h * ratio)];
  if (c.width !== width || c.height !== height) { c.width = width; c.height = height; }
  const g = c.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, w, h);
  g.font = "11.5px system-ui, sans-serif";
  g.textBaseline = "middle";
  return { c, g, w, h, left, right: w - right, top: 8, bottom: h - bottom };
}
const toX = (p, t) => p.left + ((t - state.t0) / (state.t1 - state.t0)) * (p.right - p.left);
const toT = (p, x) => state.t0 + ((x - p.left) / (p.right - p.left)) * (state.t1 - state.t0);
function clipped(p, draw) {
  p.g.save();
  p.g.beginPath();
  p.g.rect(p.left, 0, p.right - p.left, p.h);
  p.g.clip();
  draw();
  p.g.restore();
}

// The step of 1, 2 or 5 times a power of ten that cuts `range` into at most `most` parts.
function niceStep(range, most) {
  const rough = range / most, power = Math.pow(10, Math.floor(Math.log10(rough)));
  return power * ([1, 2, 5, 10].find((each) => each * power >= rough * 0.9999) || 10);
}
function binaryStep(range, most) {
  return Math.pow(2, Math.ceil(Math.log2(range / most)));
}
// The top of an axis, above `value`, and its step.
function scale(value, { most = 4, step = niceStep } = {}) {
  const each = step(Math.max(value, 1e-9), most);
  return { step: each, top: each * Math.ceil(value / each - 1e-9) || each };
}

function timeAxis(p) {
  const { g } = p, per = R.ticks_per_s || 1;
  const from = (state.t0 - R.span[0]) / per, to = (state.t1 - R.span[0]) / per;
  const step = niceStep(to - from, Math.max(2, Math.floor((p.right - p.left) / 90)));
  const [unit, name] = !R.ticks_per_s ? [1, ""] : to >= 1 || to === 0 ? [1, " s"] : to >= 1e-3 ? [1e-3, " ms"] : [1e-6, " µs"];
  const digits = Math.max(0, Math.min(9, -Math.floor(Math.log10(step / unit) + 1e-9)));
  g.strokeStyle = colours.grid;
  g.fillStyle = colours.dim;
  g.textBaseline = "top";
  g.lineWidth = 1;
  for (let at = Math.ceil(from / step - 1e-9) * step; at <= to + step * 1e-6; at += step) {
    const x = Math.round(toX(p, R.span[0] + at * per)) + 0.5;
    g.beginPath(); g.moveTo(x, p.top); g.lineTo(x, p.bottom + 3); g.stroke();
    const value = at / unit, words = Math.abs(value) < 1e-12 ? `0${name}` : R.ticks_per_s ? `${value.toFixed(digits)}${name}` : count(value);
    const wide = g.measureText(words).width / 2;
    g.textAlign = "center";
    g.fillText(words, Math.max(p.left + wide - 8, Math.min(x, p.w - wide - 1)), p.bottom + 6);
  }
  if (!R.ticks_per_s) { g.textAlign = "right"; g.fillText("step", p.left - 8, p.bottom + 6); }
  g.textBaseline = "middle";
}
function valueAxis(p, { top, step }, words, title) {
  const { g } = p;
  g.fillStyle = colours.dim;
  g.strokeStyle = colours.grid;
  g.lineWidth = 1;
  g.textAlign = "right";
  for (let v = 0; v <= top * 1.0001; v += step) {
    const y = Math.round(p.bottom - ((p.bottom - p.top) * v) / top) + 0.5;
    g.beginPath(); g.moveTo(p.left, y); g.lineTo(p.right, y); g.stroke();
    g.fillText(words(v), p.left - 8, y);
  }
  if (title) { g.textAlign = "left"; g.fillText(title, p.left + 4, p.top + 5); }
}
// Bins that are in sight: [first, end).
function inSight(edges) {
  let a = 0, b = edges.length - 1;
  while (a < b - 1 && edges[a + 1] <= state.t0) a++;
  while (b > a + 1 && edges[b - 1] >= state.t1) b--;
  return [a, b];
}
function binAt(edges, t) {
  let a = 0, b = edges.length - 1;
  while (b - a > 1) { const middle = (a + b) >> 1; if (edges[middle] <= t) a = middle; else b = middle; }
  return a;
}
function highest(layers, edges) {
  const [a, b] = inSight(edges);
  let top = 0;
  for (let i = a; i < b; i++) {
    let here = 0;
    for (const [, values] of layers) here += values[i] || 0;
    if (here > top) top = here;
  }
  return top;
}
function stacked(p, edges, layers, top, touching) {
  const { g } = p, [a, b] = inSight(edges), base = new Float64Array(b - a), high = p.bottom - p.top;
  clipped(p, () => {
    for (const [c, values] of layers) {
      g.fillStyle = c;
      for (let i = a; i < b; i++) {
        const v = values[i];
        if (!v) continue;
        // Steps that touch begin at whole pixels, or a seam would show between them.
        const at = toX(p, edges[i]), x = touching ? Math.round(at) : at, wide = toX(p, edges[i + 1]) - x, tall = (v / top) * high;
        const y = p.bottom - (base[i - a] / top) * high - tall;
        g.fillRect(x, y, Math.max(touching ? Math.round(wide) : wide - (wide > 4 ? 0.6 : 0), 1), Math.max(tall, 0.8));
        base[i - a] += v;
      }
    }
  });
}
// Values from one edge to the next; nothing where a value is NaN.
function stepLine(p, edges, values, top, c, wide = 2) {
  const { g } = p, [a, b] = inSight(edges);
  clipped(p, () => {
    g.strokeStyle = c;
    g.lineWidth = wide;
    g.beginPath();
    for (let i = a, on = false; i < b; i++) {
      if (Number.isNaN(values[i])) { on = false; continue; }
      const y = p.bottom - (values[i] / top) * (p.bottom - p.top);
      if (on) g.lineTo(toX(p, edges[i]), y); else g.moveTo(toX(p, edges[i]), y);
      g.lineTo(toX(p, edges[i + 1]), y);
      on = true;
    }
    g.stroke();
  });
}
// Small triangles that point at the times at which something broke.
function marks(p, edges, values, y, c) {
  const { g } = p, [a, b] = inSight(edges);
  let last = -9;
  g.fillStyle = c;
  for (let i = a; i < b; i++) {
    if (!values[i]) continue;
    const x = toX(p, (edges[i] + edges[i + 1]) / 2);
    if (x < p.left - 1 || x > p.right + 1 || x - last < 3) continue;
    last = x;
    g.beginPath(); g.moveTo(x, y + 7); g.lineTo(x - 4, y); g.lineTo(x + 4, y); g.fill();
  }
}

// A canvas over time: drag to zoom, the wheel too, and one line through all of them.
function timePlot(id, { tip, click, rectangle, left = LEFT, right = RIGHT, wheel = false }) {
  const c = $(id), wrap = el("div", { class: "plot" }), cross = el("i", { class: "cross" }), brush = el("i", { class: "brush" });
  c.replaceWith(wrap);
  wrap.append(c, cross, brush);
  const box = () => ({ left, right: c.clientWidth - right });
  timePlots[id] = { c, cross, box };
  let from = null;
  const at = (event) => { const b = c.getBoundingClientRect(); return [event.clientX - b.left, event.clientY - b.top]; };
  const inside = (x) => Math.max(box().left, Math.min(box().right, x));
  c.addEventListener("pointerdown", (event) => { if (event.button === 0) { from = at(event); c.setPointerCapture(event.pointerId); } });
  c.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (from && Math.abs(x - from[0]) > 3) {
      const [a, b] = [inside(from[0]), inside(x)], tall = rectangle && Math.abs(y - from[1]) > 12;
      brush.style.cssText = `display:block;left:${Math.min(a, b)}px;width:${Math.abs(b - a)}px;` +
        (tall ? `top:${Math.min(y, from[1])}px;height:${Math.abs(y - from[1])}px` : `top:0;height:${c.clientHeight - BOTTOM}px`);
    }
    pointAt(toT(box(), x), x >= box().left - 2 && x <= box().right + 2);
    tipAt(event, tip(toT(box(), inside(x)), event) || "");
  });
  c.addEventListener("pointerup", (event) => {
    const [x, y] = at(event), start = from;
    from = null;
    brush.style.display = "none";
    if (!start) return;
    if (Math.abs(x - start[0]) > 4) {
      if (rectangle && Math.abs(y - start[1]) > 12) rectangle(Math.min(y, start[1]), Math.max(y, start[1]));
      const ends = [toT(box(), inside(start[0])), toT(box(), inside(x))];
      zoom(Math.min(...ends), Math.max(...ends));
      tipAt(null, ""); // it told of what was there before
    } else if (click) click(event);
  });
  c.addEventListener("pointercancel", () => { from = null; brush.style.display = "none"; });
  c.addEventListener("pointerleave", () => { tipAt(null, ""); pointAt(0, false); });
  c.addEventListener("wheel", (event) => {
    const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (!sideways && !wheel && !event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    if (sideways) pan(event.deltaX / 800);
    else zoomBy((event.deltaY || event.deltaX) > 0 ? 1.25 : 0.8, toT(box(), at(event)[0]));
  }, { passive: false });
  c.addEventListener("dblclick", () => zoom(...R.span));
}
function pointAt(t, shown) {
  for (const { cross, box } of Object.values(timePlots)) {
    cross.style.display = shown ? "block" : "none";
    if (shown) cross.style.left = `${toX(box(), t)}px`;
  }
}
