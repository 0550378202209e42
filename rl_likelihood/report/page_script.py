"""The script of a report: its theme, its curves and the browser of its chains."""

SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), runs = data.runs;
const $ = id => document.getElementById(id);
function make(tag, attributes, ...inside) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes || {})) if (v !== null) e.setAttribute(k, v);
  e.append(...inside.filter(x => x !== null));
  return e;
}
const short = x => x === null ? "not finite" : Math.abs(x) >= 1000 ? x.toFixed(0)
  : Math.abs(x) >= 0.1 || x === 0 ? x.toFixed(Math.abs(x) >= 100 ? 1 : 3) : x.toPrecision(3);

// Theme: the system's, until the button is used.
const system = matchMedia("(prefers-color-scheme: dark)");
let theme = null;
const paint = () => { document.documentElement.className = theme || (system.matches ? "dark" : "light"); };
system.addEventListener("change", paint);
$("theme").onclick = () => { theme = document.documentElement.className === "dark" ? "light" : "dark"; paint(); };
paint();

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
    const kept = all.filter(v => v >= low && v <= high);
    return kept.length > 7 ? kept.filter(v => String(v / 10 ** Math.floor(Math.log10(v) + 1e-9))[0] === "1") : kept;
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
function reading(panel, lines, step) {  // what all lines say at a step: a row a name, a column training and held-out
  const seeds = [...new Set(lines.map(l => l.r.seed))], found = new Map();
  for (const l of lines) {
    const i = l.steps.indexOf(step);
    if (i < 0) continue;
    if (!found.has(l.r.row))
      found.set(l.r.row, {r: l.r, train: Array(seeds.length).fill(), heldout: Array(seeds.length).fill()});
    found.get(l.r.row)[l.kind][seeds.indexOf(l.r.seed)] = l.values[i];
  }
  const rows = [...found.values()], text = v => panel.percent && v !== null ? `${(100 * v).toFixed(1)}%` : short(v);
  const kinds = ["train", "heldout"].filter(k => rows.some(o => o[k].some(v => v !== undefined)));
  const key = o => [...kinds].reverse().flatMap(k => o[k]).find(v => v !== undefined && v !== null) ?? -Infinity;
  rows.sort((a, b) => key(b) - key(a));
  return make("table", {},
    make("thead", {}, make("tr", {}, make("th", {}, make("b", {}, `step ${step}`)),
      ...kinds.map(k => make("th", {}, k === "train" ? "training" : "held-out")))),
    make("tbody", {}, ...rows.map(o => {
      const dot = make("span", {}, "\u25cf ");
      dot.style.color = colour(o.r);
      return make("tr", {}, make("th", {}, dot, o.r.row), ...kinds.map(k => make("td", {}, range(o[k], text))));
    })));
}
function chart(card, panel, shown) {
  const lines = [];
  for (const r of shown) for (const [kind, name] of [["train", panel.train], ["heldout", panel.heldout]]) {
    const s = name && r[kind][name];
    if (s && s[0].length) lines.push({r, kind, steps: s[0], values: s[1]});
  }
  const finite = lines.flatMap(l => l.values).filter(v => v !== null);
  if (!finite.length) { card.append(make("p", {class: "faint"}, "not measured in the shown runs")); return; }
  let low = Math.min(...finite), high = Math.max(...finite);
  const log = panel.log && low > 0 && high > 10 * low;
  if (panel.percent) { low = 0; high = Math.min(1, Math.max(high * 1.1, 0.05)); }
  if (low === high) { low -= Math.abs(low) * 0.1 || 0.5; high += Math.abs(high) * 0.1 || 0.5; }
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
    el.append(svg("text", {x: x(s), y: H - 8, "text-anchor": "middle"}, s));
  const both = lines.some(l => l.kind === "heldout");
  for (const l of lines) {
    let d = "", pen = "M";
    l.values.forEach((v, i) => {
      if (v !== null) d += `${pen}${x(l.steps[i])},${y(v)}`;
      pen = v === null ? "M" : "L";
    });
    const faint = both && l.kind === "train";
    el.append(svg("path", {d, fill: "none", stroke: colour(l.r), "stroke-width": faint ? 1.1 : 1.8,
      "stroke-opacity": faint ? 0.35 : 1, "stroke-dasharray": dash(l.r), "stroke-linejoin": "round"}));
    if (l.kind === "heldout") l.values.forEach((v, i) => v !== null && el.append(
      svg("circle", {cx: x(l.steps[i]), cy: y(v), r: 3.5, fill: colour(l.r), stroke: "var(--card)"})));
  }
  const at = svg("line", {class: "at", y1: T, y2: H - B, visibility: "hidden"});
  const tip = make("div", {class: "tip", "aria-live": "polite", hidden: ""});
  el.append(at);
  card.append(el, tip);
  const steps = [...new Set(lines.flatMap(l => l.steps))].sort((a, b) => a - b);
  let cursor = steps.length - 1;
  function show(i) {
    cursor = Math.max(0, Math.min(steps.length - 1, i));
    const s = steps[cursor];
    at.setAttribute("x1", x(s)); at.setAttribute("x2", x(s)); at.setAttribute("visibility", "visible");
    tip.replaceChildren(reading(panel, lines, s));
    tip.hidden = false;
    tip.style.left = x(s) > W / 2 ? "12px" : "auto";  // on the other side of the chart
    tip.style.right = x(s) > W / 2 ? "auto" : "12px";
  }
  const hide = () => { tip.hidden = true; at.setAttribute("visibility", "hidden"); };
  const point = e => {
    const box = el.getBoundingClientRect(), s = ((e.clientX - box.left) / box.width * W - L) / (W - L - R) * last;
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
    box.onchange = () => { box.checked ? hidden.delete(r.row) : hidden.add(r.row); drawCharts(); };
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
    make("h3", {}, p.title)));
  $("charts").replaceChildren(...cards);
  panels.forEach((p, i) => chart(cards[i], p, shown));
}
const option = (value, text) => make("option", {value}, text);
const blocks = [...new Set(runs.flatMap(r => r.blocks))];
$("block").append(...blocks.map(b => option(b, b || "all")));
$("block-label").hidden = blocks.length < 2;
$("block").onchange = drawCurves;
drawCurves();
new ResizeObserver(() => { if ($("charts").clientWidth !== drawnAt) drawCharts(); }).observe($("charts"));

// Chains.
const heat = logp => `rgba(var(--heat),${Math.min(1, -logp / 5) * 0.75})`;
$("scale").append(...[0, -0.5, -1, -2, -5].map(l => {
  const s = make("span", {}, l === -5 ? "-5 nats or less" : String(l));
  s.style.background = heat(l);
  return s;
}));
function answer(group, logp, where) {
  const total = logp.reduce((sum, l, i) => sum + (group.scored[i] ? l : 0), 0);
  const tokens = group.tokens.map((text, i) => {
    const t = make("span", {class: group.scored[i] ? "tok" : "tok off", tabindex: i ? -1 : 0}, text);
    if (group.scored[i]) t.style.background = heat(logp[i]);
    return t;
  });
  const out = make("p", {class: "text answer", role: "group", "aria-label": `reference answer ${where}, by tokens`},
    make("small", {}, `reference answer ${where}: ${total.toFixed(2)} nats`), ...tokens);
  out.of = {group, logp, where, tokens};
  return out;
}
function tell(t) {  // a token's numbers; Tab comes back to it
  const {group, logp, where, tokens} = t.parentNode.of, i = tokens.indexOf(t), bare = group.bare;
  for (const other of tokens) if (other.tabIndex === 0) other.tabIndex = -1;
  t.tabIndex = 0;
  $("token").textContent = `${JSON.stringify(group.tokens[i])}  log-prob ${logp[i].toFixed(3)}, probability ` +
    Math.exp(logp[i]).toPrecision(3) + ` ${where}` + (group.scored[i] ? "" : ", not scored") +
    (bare && logp !== bare ? `; ${bare[i].toFixed(3)} without a chain` : "");
}
function besides(t, key) {  // the token that an arrow key leads to
  const {tokens} = t.parentNode.of, i = tokens.indexOf(t);
  const to = {ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: tokens.length - 1}[key];
  if (to !== undefined) return tokens[to];
  const all = [...t.closest(".view").querySelectorAll(".answer")].filter(a => a.of), at = all.indexOf(t.parentNode);
  return all[at + {ArrowUp: -1, ArrowDown: 1}[key]]?.of.tokens[i];
}
const token = e => e.target.closest(".tok");
$("rollouts").addEventListener("focusin", e => token(e) && tell(token(e)));
$("rollouts").addEventListener("focusout", e => { if (token(e)) $("token").textContent = ""; });
$("rollouts").addEventListener("click", e => token(e) && tell(token(e)));
$("rollouts").addEventListener("keydown", e => {
  if (!token(e) || !/^(Arrow|Home$|End$)/.test(e.key) || e.altKey || e.ctrlKey || e.metaKey) return;
  besides(token(e), e.key)?.focus();
  e.preventDefault();
  e.stopPropagation();
});
let unfolded = false;  // whether the reader wants to see all rewards
function chainCard(group, c) {
  const split = c.chain.lastIndexOf("</think>");
  const [body, tag] = split < 0 ? [c.chain, ""] : [c.chain.slice(0, split), c.chain.slice(split).replace(/\s+/g, " ")];
  const sign = c.advantage > 0 ? "good" : c.advantage < 0 ? "bad" : "";
  const list = make("dl");
  for (const [name, value] of Object.entries(c.rewards))
    list.append(make("dt", {}, name), make("dd", {}, short(value)));
  const more = make("details", {class: "more", open: unfolded ? "" : null}, make("summary", {}, "all rewards"), list);
  more.ontoggle = () => { unfolded = more.open; };
  return make("article", {class: "card chain"},
    make("header", {}, make("span", {}, "reward ", make("strong", {}, short(c.reward))),
      make("span", {class: sign}, `advantage ${c.advantage > 0 ? "+" : ""}${short(c.advantage)}`),
      c.truncated ? make("span", {class: "bad"}, "never opened the answer") : null),
    make("p", {class: "text"}, body.trim() || "(empty)", make("span", {class: "tag"}, tag),
      c.forced ? make("span", {class: "tag"}, ` [forced: ${c.forced.trim()}]`) : null),
    answer(group, c.logp, "after this chain"),
    c.sampled ? make("p", {class: "text answer"}, make("small", {}, "sampled answer"), c.sampled) : null,
    more);
}
const stepsOf = r => [...new Set(r.groups.map(g => g.step))];
const nearest = (steps, step) => steps.reduce((best, s) => Math.abs(s - step) < Math.abs(best - step) ? s : best,
  steps[steps.length - 1]);
function view(r, step, prompt) {
  const out = make("div", {class: "view"}, make("h3", {}, r.name)), near = nearest(stepsOf(r), step);
  const here = r.groups.filter(g => g.step === near), group = here.find(g => g.id === prompt) || here[0];
  if (!group) { out.append(make("p", {class: "card"}, "this run has written no chains")); return out; }
  const best = [...group.chains].sort((a, b) => b.reward - a.reward);
  const other = Number.isFinite(step) && near !== step ? ` (nothing is here of step ${step})` : "";
  out.append(
    make("div", {class: "card question"},
      make("b", {}, `question ${group.id}, step ${group.step}${other}`), group.prompt,
      group.bare ? answer(group, group.bare, "without a chain") : null),
    make("div", {class: "chains"}, ...best.map(c => chainCard(group, c))));
  return out;
}
function fill(select, options, wanted) {
  select.replaceChildren(...options);
  const values = options.map(o => o.value);
  select.value = values.includes(String(wanted)) ? wanted : values[0] ?? "";
}
let wanted = {step: Infinity, prompt: ""};  // what the reader chose last; a run may only have something near it
function drawChains() {
  const r = runs[+$("run").value], other = runs[+$("beside").value];
  if (!r) return;
  const steps = stepsOf(r), near = nearest(steps, wanted.step);
  fill($("step"), steps.map(s => option(s, s)), near);
  fill($("prompt"), r.groups.filter(g => g.step === near).map(g => option(g.id, g.prompt.slice(0, 80))), wanted.prompt);
  $("step").disabled = $("prompt").disabled = !steps.length;
  const views = [view(r, wanted.step, $("prompt").value)];
  if ($("beside").value !== "" && other) views.push(view(other, near ?? wanted.step, $("prompt").value));
  $("rollouts").replaceChildren(make("div", {class: views.length > 1 ? "two pair" : "two"}, ...views));
  $("token").textContent = "";
}
function choose(change) {  // draws what the reader chose, and says it in the address: so every link leads elsewhere
  wanted = {...wanted, ...change};
  drawChains();
  const query = new URLSearchParams({run: $("run").value});
  for (const name of ["step", "prompt", "beside"]) if ($(name).value !== "") query.set(name, $(name).value);
  try { history.replaceState(null, "", `#${query}`); } catch { /* some browsers count these: the address lags */ }
}
fill($("run"), runs.map((r, i) => option(i, r.name)), Math.max(0, runs.findIndex(r => r.groups.length)));
fill($("beside"), [option("", "nothing"), ...runs.map((r, i) => option(i, r.name))], "");
$("run").onchange = $("beside").onchange = () => choose({});
$("step").onchange = () => choose({step: +$("step").value});
$("prompt").onchange = () => choose({prompt: $("prompt").value});
function move(by, select) {
  const i = select.selectedIndex + by;
  if (i < 0 || i >= select.options.length) return;
  select.selectedIndex = i;
  select.onchange();
}
$("earlier").onclick = () => move(-1, $("step"));
$("later").onclick = () => move(1, $("step"));
document.addEventListener("keydown", e => {
  if (e.key === "Escape") $("token").textContent = "";
  const by = {ArrowLeft: -1, ArrowRight: 1}[e.key];
  if (!by || e.altKey || e.ctrlKey || e.metaKey || /SELECT|INPUT|TEXTAREA/.test(e.target.tagName)) return;
  if (e.target.classList.contains("scroll")) return;
  move(by, e.shiftKey ? $("run") : $("step"));
  e.preventDefault();
});
function follow() {  // #run=3&step=10&prompt=...&beside=4
  const query = new URLSearchParams(location.hash.slice(1)), known = name => /^\d+$/.test(query.get(name)) &&
    runs[+query.get(name)] !== undefined;
  if (!known("run")) return;
  $("run").value = +query.get("run");
  $("beside").value = known("beside") ? +query.get("beside") : "";
  const step = query.get("step");
  choose({step: /^\d+$/.test(step) ? +step : Infinity, prompt: query.get("prompt") ?? ""});
  $("chains").scrollIntoView();
}
addEventListener("hashchange", follow);
drawChains();
follow();
"""
