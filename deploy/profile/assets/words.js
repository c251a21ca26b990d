// Words, colours and elements.

const ORDER_NAMES = { 0: "4K", 9: "2M", 10: "4M", 18: "1G" };
// Colours that stay apart for every kind of colour vision (after Okabe and Ito).
const COLOUR_OF = {
  18: "blue", 10: "green", 9: "green", 0: "orange",
  toolstack: "blue", allocator: "green", p2m: "orange", walker: "pink", client: "grey",
  transport: "pale", shatters: "red", coverage: "pink", updates: "sky",
};
const SERIES_COLOURS = ["blue", "green", "orange", "pink", "sky", "red", "grey"];

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  colours = {};
  for (const name of [...SERIES_COLOURS, "pale", "alarm", "ink", "dim", "grid", "line", "card", "accent", "bar", "pick"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
}
const colour = (name, i = 0) => colours[COLOUR_OF[name] || SERIES_COLOURS[i % SERIES_COLOURS.length]];

const count = (n) => Math.round(n).toLocaleString("en-US");
const hex = (n) => `0x${n.toString(16)}`;
const trim = (x, digits = 4) => String(Number(x.toPrecision(digits)));
const shortCount = (v) => {
  if (v >= 1e6) return `${trim(v / 1e6, 3)} M`;
  return v >= 1e4 ? `${trim(v / 1e3, 3)} k` : v >= 10 || v === Math.round(v) ? count(v) : trim(v);
};
const inSteps = () => (R.ticks_per_s ? "" : "; times in steps");
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
function percent(part, whole = 1) {
  const share = whole ? (100 * part) / whole : 0;
  if (share > 0 && share < 0.1) return "<0.1 %";
  return `${share >= 99.95 || share === 0 ? Math.round(share) : share.toFixed(1)} %`;
}
function time(ticks) {
  if (!R.ticks_per_s) return plural(ticks, "step");
  const s = ticks / R.ticks_per_s, a = Math.abs(s);
  if (a >= 1 || a === 0) return `${trim(s)} s`;
  return a >= 1e-3 ? `${trim(s * 1e3)} ms` : `${trim(s * 1e6)} µs`;
}
// A time in a column whose head or title tells the unit of the steps.
const span = (ticks) => (R.ticks_per_s ? time(ticks) : count(ticks));
// A time in a table of times: where it is, as fine as the window in sight needs it.
function moment(ticks) {
  const since = ticks - R.span[0];
  if (!R.ticks_per_s) return count(since);
  const per = R.ticks_per_s, wide = (R.span[1] - R.span[0]) / per;
  const [unit, name] = wide >= 1 ? [1, "s"] : wide >= 1e-3 ? [1e-3, "ms"] : [1e-6, "µs"];
  const shown = (state.t1 - state.t0) / per / unit, digits = Math.min(9, Math.max(0, 5 - Math.floor(Math.log10(shown))));
  return `${(since / per / unit).toFixed(digits)} ${name}`;
}
function bytes(n) {
  if (n >= 1 << 20) return `${trim(n / (1 << 20))} MiB`;
  return n >= 1024 ? `${trim(n / 1024)} KiB` : `${n} B`;
}
function memory(frames) {
  if (!frames) return "0";
  if (frames >= 1 << 18) return `${trim(frames / (1 << 18))} GiB`;
  return frames >= 256 ? `${trim(frames / 256)} MiB` : `${frames * 4} KiB`;
}
const service = (name) => name.split("/")[0];
const orderName = (o) => ORDER_NAMES[o] || `order ${o}`;
const stepName = (step) => step.split("->").map(orderName).join(" → ");
const domainName = (d) => `domain ${d}`;
const sum = (o) => Object.values(o || {}).reduce((a, b) => a + b, 0);
const listed = (o, word = orderName) =>
  Object.entries(o || {}).filter(([, n]) => n).sort((a, b) => parseInt(b[0]) - parseInt(a[0]))
    .map(([key, n]) => `${count(n)} × ${word(key)}`).join(", ");

// Everything that comes from the trace goes in as text, never as HTML.
function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat(3).filter((child) => child != null && child !== false));
  return made;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const empty = (text) => el("p", { class: "empty" }, text);
const swatch = (c) => el("i", { class: "swatch", style: `background:${c}` });
function legend(id, items) {
  $(id).replaceChildren(...items.map(([name, c]) => el("span", {}, c && swatch(c), name)));
}
function press(buttons, chosen) {
  for (const button of buttons) button.setAttribute("aria-pressed", String(chosen(button)));
}

let silence;
function say(text) {
  const tip = $("tip");
  tip.textContent = text;
  tip.hidden = false;
  tip.classList.add("said");
  tip.style.left = `${Math.max(8, (innerWidth - tip.offsetWidth) / 2)}px`;
  tip.style.top = "76px";
  clearTimeout(silence);
  silence = setTimeout(() => { tip.hidden = true; tip.classList.remove("said"); }, 5000);
}
function tipAt(event, text) {
  const tip = $("tip");
  if (tip.classList.contains("said") && !text) return;
  tip.classList.remove("said");
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const left = event.clientX + 16 + tip.offsetWidth > innerWidth ? event.clientX - tip.offsetWidth - 12 : event.clientX + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8))}px`;
}
