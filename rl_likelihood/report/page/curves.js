// Curves.
const dashes = ["", "6 3", "2 3", "8 3 2 3"];
const colour = r => `var(--c${data.colours[r.row] % 8})`;
const seedsOf = [...new Set(runs.map(r => r.seed))], dash = r => dashes[seedsOf.indexOf(r.seed) % 4];
const hidden = new Set();
const NS = "http://www.w3.org/2000/svg";
function svg(tag, attributes, text) {
  const e = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text !== undefined) e.textContent = text;
  return e;
}
function ticks(low, high, log) {
  if (log) {
    const all = [];
    for (let d = Math.floor(Math.log10(low)); d <= Math.log10(high); d++) all.push(...[1, 2, 5].map(m => m * 10 ** d));
    const inside = all.filter(v => v >= low && v <= high);
    const isPower = v => String(v / 10 ** Math.floor(Math.log10(v) + 1e-9))[0] === "1";
    return inside.length > 7 ? inside.filter(isPower) : inside;
  }
  const raw = (high - low) / 4 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw), out = [];
  for (let v = Math.ceil(low / size) * size; v <= high + size / 1e6; v += size)
    out.push(Math.abs(v) < size / 1e6 ? 0 : v);
  return out;
}
function range(values, text) {  // the seeds' numbers side by side; of many, mean and range
  if (!values.some(v => v !== undefined)) return "";
  const known = values.filter(v => v !== undefined && v !== null);
  if (values.length <= 4 || !known.length) return values.map(v => v === undefined ? "-" : text(v)).join("  ");
  const mean = known.reduce((sum, v) => sum + v, 0) / known.length;
  return `${text(mean)} (${text(Math.min(...known))} to ${text(Math.max(...known))})`;
}
function reading(panel, lines, step) {  // what all lines say at a step, or after a part of the chain: a row a name
  const seeds = [...new Set(lines.map(l => l.r.seed))], byName = new Map();
  for (const l of lines) {
    const i = l.steps.indexOf(step);
    if (i < 0) continue;
    if (!byName.has(l.r.row))
      byName.set(l.r.row, {r: l.r, train: Array(seeds.length).fill(), heldout: Array(seeds.length).fill()});
    byName.get(l.r.row)[l.kind][seeds.indexOf(l.r.seed)] = l.values[i];
  }
  const rows = [...byName.values()], text = v => panel.percent && v !== null ? `${(100 * v).toFixed(1)}%` : short(v);
  const kinds = ["train", "heldout"].filter(k => rows.some(o => o[k].some(v => v !== undefined)));
  const key = o => [...kinds].reverse().flatMap(k => o[k]).find(v => v !== undefined && v !== null) ?? -Infinity;
  rows.sort((a, b) => key(b) - key(a));
  return make("table", {},
    make("thead", {}, make("tr", {}, make("th", {}, make("b", {}, panel.trace ? `after ${step} %` : `step ${step}`)),
      ...kinds.map(k => make("th", {}, k === "train" ? "training" : "held-out")))),
    make("tbody", {}, ...rows.map(o => {
      const dot = make("span", {}, "\u25cf ");
      dot.style.color = colour(o.r);
      return make("tr", {}, make("th", {}, dot, o.r.row), ...kinds.map(k => make("td", {}, range(o[k], text))));
    })));
}
function scaleOf(panel, finite) {  // the ends of the axis of a panel, and whether it is logarithmic
  let low = Math.min(...finite), high = Math.max(...finite);
  const log = panel.log && low > 0 && high > 10 * low;
  if (panel.percent) { low = 0; high = Math.min(1, Math.max(high * 1.1, 0.05)); }
  else if (low === 0 && high === 0) high = 1;
  if (low === high) { low -= Math.abs(low) * 0.1 || 0.5; high += Math.abs(high) * 0.1 || 0.5; }
  return {low, high, log};
}
function drawLine(el, l, {x, y, faint, wider}) {
  let d = "", pen = "M";
  l.values.forEach((v, i) => {
    if (v !== null) d += `${pen}${x(l.steps[i])},${y(v)}`;
    pen = v === null ? "M" : "L";
  });
  // A line that is drawn earlier is wider: it shows at both sides of one that lies on it.
  el.append(svg("path", {d, fill: "none", stroke: colour(l.r), "stroke-width": faint ? 1.1 : 1.6 + 1.8 * wider,
    "stroke-opacity": faint ? 0.35 : 1, "stroke-dasharray": dash(l.r), "stroke-linejoin": "round"}));
  const alone = i => l.values[i - 1] == null && l.values[i + 1] == null;  // no line leads to it
  l.values.forEach((v, i) => v !== null && (l.kind === "heldout" || alone(i)) && el.append(
    svg("circle", {cx: x(l.steps[i]), cy: y(v), r: l.kind === "heldout" ? 3 + 1.5 * wider : 2, fill: colour(l.r),
      "fill-opacity": faint ? 0.35 : 1, stroke: "var(--card)"})));
}
function chart(card, panel, shown) {
  const lines = [];
  for (const r of shown) for (const [kind, name] of [["train", panel.train], ["heldout", panel.heldout]]) {
    const s = name && r[kind][name];
    if (s && s[0].length) lines.push({r, kind, steps: s[0], values: s[1]});
  }
  const finite = lines.flatMap(l => l.values).filter(v => v !== null);
  if (!finite.length) { card.append(make("p", {class: "faint"}, "not measured in the shown runs")); return; }
  const {low, high, log} = scaleOf(panel, finite);
  const last = Math.max(...lines.flatMap(l => l.steps), 1), L = 52, R = 10, T = 8, B = 28;
  const W = Math.max(240, card.clientWidth - 28), H = W < 360 ? 220 : 250;  // as wide as shown: text keeps its size
  const f = log ? Math.log : v => v, pad = panel.percent ? 0 : (f(high) - f(low)) * 0.05;
  const x = s => L + (W - L - R) * s / last, bottom = f(low) - pad, top = f(high) + pad;
  const y = v => H - B - (H - T - B) * (f(v) - bottom) / (top - bottom);
  const el = svg("svg", {viewBox: `0 0 ${W} ${H}`});
  for (const v of ticks(low, high, log)) {
    el.append(svg("line", {class: "grid", x1: L, x2: W - R, y1: y(v), y2: y(v)}));
    const text = panel.percent ? `${+(100 * v).toFixed(1)}%` : String(+v.toPrecision(4));
    el.append(svg("text", {x: L - 6, y: y(v) + 4, "text-anchor": "end"}, text));
  }
  for (const s of ticks(0, last, false).filter(Number.isInteger))
    el.append(svg("text", {x: x(s), y: H - 8, "text-anchor": panel.trace && s === last ? "end" : "middle"},
      panel.trace ? `${s}%` : s));
  const both = lines.some(l => l.kind === "heldout"), names = [...new Set(lines.map(l => l.r.row))];
  for (const l of lines) {
    const wider = 1 - names.indexOf(l.r.row) / Math.max(1, names.length - 1);
    drawLine(el, l, {x, y, faint: both && l.kind === "train", wider});
  }
  const at = svg("line", {class: "at", y1: T, y2: H - B, visibility: "hidden"});
  el.append(at);
  card.append(el);
  const steps = [...new Set(lines.flatMap(l => l.steps))].sort((a, b) => a - b);
  const stepAt = share => (share * W - L) / (W - L - R) * last;  // of a share of the chart's width
  reader(card, el, {at, x, middle: W / 2, stepAt, steps, table: step => reading(panel, lines, step)});
}
function reader(card, el, {at, x, middle, stepAt, steps, table}) {  // shows the numbers under the mouse or the keys
  const tip = make("div", {class: "tip", "aria-live": "polite", hidden: ""});
  card.append(tip);
  let cursor = steps.length - 1;
  function show(i) {
    cursor = Math.max(0, Math.min(steps.length - 1, i));
    const s = steps[cursor];
    at.setAttribute("x1", x(s)); at.setAttribute("x2", x(s)); at.setAttribute("visibility", "visible");
    tip.replaceChildren(table(s));
    tip.hidden = false;
    tip.style.left = x(s) > middle ? "12px" : "auto";  // on the other side of the chart
    tip.style.right = x(s) > middle ? "auto" : "12px";
  }
  const hide = () => { tip.hidden = true; at.setAttribute("visibility", "hidden"); };
  const point = e => {
    const box = el.getBoundingClientRect(), s = stepAt((e.clientX - box.left) / box.width);
    show(steps.reduce((best, v, i) => Math.abs(v - s) < Math.abs(steps[best] - s) ? i : best, 0));
  };
  el.addEventListener("pointermove", point);
  el.addEventListener("pointerdown", point);
  el.addEventListener("pointerleave", e => { if (e.pointerType === "mouse") hide(); });  // a finger has left at once
  card.addEventListener("focus", () => { if (card.matches(":focus-visible")) show(cursor); });
  card.addEventListener("blur", hide);
  card.addEventListener("keydown", e => {
    const to = {ArrowLeft: cursor - 1, ArrowRight: cursor + 1, Home: 0, End: steps.length - 1}[e.key];
    if (to !== undefined) { show(to); e.preventDefault(); e.stopPropagation(); }
    if (e.key === "Escape") hide();
  });
}
const inBlock = () => runs.filter(r => r.blocks.includes($("block").value));
function drawCurves() {
  const list = inBlock(), first = list.filter((r, i) => list.findIndex(s => s.row === r.row) === i);
  $("legend").replaceChildren(...first.map(r => {
    const box = make("input", {type: "checkbox"}), line = make("i");
    box.checked = !hidden.has(r.row);
    box.onchange = () => {
      if (box.checked) hidden.delete(r.row); else hidden.add(r.row);
      drawCharts();
    };
    line.style.borderTopColor = colour(r);
    return make("label", {}, box, line, r.row);
  }));
  drawCharts();
}
let drawnAt = 0;
const measured = (r, p) => r.train[p.train]?.[0].length || r.heldout[p.heldout]?.[0].length;
function drawCharts() {
  drawnAt = $("charts").clientWidth;
  const all = inBlock(), shown = all.filter(r => !hidden.has(r.row)), rewards = new Set(shown.map(r => r.reward));
  const panels = data.panels.filter(p => all.some(r => measured(r, p)))
    .filter(p => rewards.size < 2 || !p.one);  // rewards of different units share no axis
  const cards = panels.map(p => make("div", {class: "card chart", tabindex: "0", role: "group", "aria-label": p.title},
    make("h3", {title: p.definition}, p.title)));
  $("charts").replaceChildren(...cards);
  panels.forEach((p, i) => chart(cards[i], p, shown));
}
const blocks = [...new Set(runs.flatMap(r => r.blocks))];
$("block").append(...blocks.map(b => option(b, b || "all")));
$("block-label").hidden = blocks.length < 2;
$("block").onchange = drawCurves;
drawCurves();
new ResizeObserver(() => { if ($("charts").clientWidth !== drawnAt) drawCharts(); }).observe($("charts"));
