"""What page.py puts together: the frame, the style and the script of a report. No address outside the page is named."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src '{{ script_hash }}'">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
  <h1>{{ title }}</h1>
  {% if doc %}<p>{{ doc }}</p>{% endif %}
  <p class="faint">{{ runs|length }} runs, {{ done }} finished; {{ chains }} sampled chains</p>
  <nav aria-label="Sections">
    {% if blocks %}<a href="#table">Table</a>{% endif %} <a href="#curves">Curves</a>
    {% if figures %}<a href="#figures">Figures</a>{% endif %}
    <a href="#runs">Runs</a> <a href="#chains">Chains</a>
    <button id="theme" type="button" title="Light or dark">Theme</button>
  </nav>
</header>
<noscript><p class="card">Curves and chains need JavaScript; the table and the figures do not.</p></noscript>
<main>
{% if blocks %}
<section id="table"><h2>Table</h2>
{% for block in blocks %}
{% if block.title %}<h3>{{ block.title }}</h3>{% endif %}
<div class="scroll" tabindex="0"><table>
<thead><tr>{% for text in block.head %}<th scope="col">{{ text }}</th>{% endfor %}</tr></thead>
<tbody>{% for line in block.body %}<tr><th scope="row">{% if line.run is none %}{{ line.cells[0] }}\
{% else %}<a href="#run={{ line.run }}">{{ line.cells[0] }}</a>{% endif %}</th>\
{% for text in line.cells[1:] %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endfor %}
<p class="faint">{{ caption }}</p>
</section>
{% endif %}
<section id="curves"><h2>Curves</h2>
<div class="controls"><label id="block-label">Table <select id="block"></select></label>
<span id="legend" role="group" aria-label="Shown runs"></span></div>
<div id="charts"></div>
<p class="faint">Lines: training, long runs as means over some steps. Points: held-out questions. One line a run;
seeds differ in dash. Point at a chart, or focus it and use the arrow keys, to read its numbers.</p>
</section>
{% if figures %}
<section id="figures"><h2>Figures</h2>
{% for figure in figures %}<details{% if loop.first %} open{% endif %}><summary>{{ figure.name }}</summary>
<img alt="{{ figure.alt }}" src="data:image/png;base64,{{ figure.png }}"></details>
{% endfor %}</section>
{% endif %}
<section id="runs"><h2>Runs</h2>
<div class="scroll long" tabindex="0"><table>
<thead><tr><th scope="col">run</th><th scope="col">state</th><th scope="col">step</th>\
<th scope="col">sampled chains</th></tr></thead>
<tbody>{% for run in runs %}<tr><th scope="row"><a href="#run={{ loop.index0 }}">{{ run.name }}</a></th>\
<td>{{ run.state }}</td><td>{{ run.step }}</td><td>{{ run.chains }}</td></tr>
{% endfor %}</tbody></table></div>
</section>
<section id="chains"><h2>Chains</h2>
<div class="controls">
<label>Run <select id="run"></select></label>
<label>Beside it <select id="beside"></select></label>
<label>Step <select id="step"></select></label>
<label>Prompt <select id="prompt"></select></label>
<span><button id="earlier" type="button" aria-label="Earlier step">&larr;</button>
<button id="later" type="button" aria-label="Later step">&rarr;</button></span>
</div>
<p class="faint">The reference answer's tokens after each chain, coloured by how unlikely the model finds them:
<span id="scale"></span> Tap one for its number; grey ones are not scored. Keys: &larr; and &rarr; change
the step, shift with them the run.</p>
<div id="rollouts"></div>
<output id="token"></output>
</section>
</main>
<script type="application/json" id="data">{{ data }}</script>
<script>{{ script }}</script>
</body>
</html>
"""

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1f2328;--faint:#5c636b;--line:#d9dcdf;--accent:#0b62a8;
--good:#0f7b4f;--bad:#b3361b;--heat:217,95,2;
--c0:#0072b2;--c1:#d55e00;--c2:#008a63;--c3:#b8608f;--c4:#2b95c9;--c5:#b47d00;--c6:#1f2328;--c7:#8b5a2b}
:root.dark{--bg:#15181b;--card:#1e2226;--ink:#e6e8ea;--faint:#9aa3ab;--line:#363c42;--accent:#6cb6f5;
--good:#57c795;--bad:#ff8f70;--heat:255,140,50;
--c0:#4aa8e0;--c1:#f08542;--c2:#3fc79a;--c3:#e29cc2;--c4:#8fd0f2;--c5:#ecb73f;--c6:#e6e8ea;--c7:#c79a6b}
:root.dark{color-scheme:dark}:root.light{color-scheme:light}
*{box-sizing:border-box}[hidden]{display:none!important}
html{scroll-behavior:smooth}
body{margin:0 auto;max-width:1240px;padding:0 16px 64px;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{margin:24px 0 0;font-size:1.6rem}h2{margin:40px 0 12px;font-size:1.25rem}h3{margin:20px 0 6px;font-size:1rem}
header p{margin:4px 0}.faint{color:var(--faint);font-size:.875rem}
nav{display:flex;flex-wrap:wrap;gap:6px 18px;align-items:center;margin-top:10px}
a{color:var(--accent)}nav a{padding:4px 0}
button,select{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);border-radius:6px;
padding:5px 10px;max-width:100%}
button{cursor:pointer}:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:6px 12px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
thead th{white-space:normal;vertical-align:bottom;color:var(--faint);font-weight:600}
tbody th,thead th:first-child{text-align:left;font-weight:600}tbody tr:last-child>*{border-bottom:0}
.scroll tbody th,.scroll thead th:first-child{position:sticky;left:0;background:var(--card)}
.controls{display:flex;flex-wrap:wrap;gap:8px 14px;align-items:center;margin:8px 0}
.controls label{display:inline-flex;gap:6px;align-items:center;min-width:0;font-size:.9rem}
.controls select{min-width:0;max-width:min(60vw,420px)}
#legend{display:flex;flex-wrap:wrap;gap:4px 8px}
#legend label{border:1px solid var(--line);border-radius:999px;padding:1px 10px 1px 8px;background:var(--card)}
#legend i{width:18px;height:0;border-top:3px solid;display:inline-block}
#charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:14px}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 14px;min-width:0}
.chart{position:relative}.chart h3{margin:0 0 4px}.chart svg{display:block;width:100%;height:auto;touch-action:pan-y}
.chart text{fill:var(--faint);font-size:11px}.chart .grid{stroke:var(--line);stroke-width:1}
.chart .at{stroke:var(--faint);stroke-dasharray:3 3}
.tip{position:absolute;z-index:2;top:34px;max-width:72%;pointer-events:none;background:var(--card);
border:1px solid var(--line);border-radius:6px;padding:5px 9px;font-size:.78rem;line-height:1.35;
box-shadow:0 2px 10px #0003;white-space:nowrap;overflow:hidden}
details{margin:8px 0}summary{cursor:pointer;padding:4px 0}
details img{width:100%;max-width:1080px;height:auto;border-radius:8px;background:#fff}
.question{white-space:pre-wrap;overflow-wrap:anywhere}.question b{display:block;font-size:.8rem;color:var(--faint)}
.two{display:grid;gap:20px}@media(min-width:900px){.two.pair{grid-template-columns:1fr 1fr}}.two>div{min-width:0}
.chains{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr));gap:12px;margin-top:12px}
.chain header{display:flex;flex-wrap:wrap;gap:2px 12px;align-items:baseline;margin-bottom:6px;font-size:.85rem}
.chain header strong{font-size:1.05rem}.good{color:var(--good)}.bad{color:var(--bad)}
.text{white-space:pre-wrap;overflow-wrap:anywhere;font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
max-height:22em;overflow:auto;margin:0}.text .tag{color:var(--faint)}
.answer{margin-top:8px;border-top:1px solid var(--line);padding-top:6px}
.answer small{display:block;color:var(--faint);font-family:system-ui,sans-serif}
.tok{border-radius:3px;padding:1px 0;cursor:pointer}
.tok.off{color:var(--faint)}
.more{font-size:.8rem}.more dl{display:grid;grid-template-columns:auto auto;gap:0 12px;margin:4px 0}
.more dd{margin:0;text-align:right;font-variant-numeric:tabular-nums}
#token{position:fixed;left:0;right:0;bottom:0;padding:6px 16px;background:var(--card);border-top:1px solid var(--line);
font-variant-numeric:tabular-nums}#token:empty{display:none}
#scale span{padding:1px 7px;color:var(--ink)}
.scroll.long{max-height:26rem;overflow-y:auto}
.scroll.long thead th{position:sticky;top:0;z-index:1;background:var(--card)}
"""

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
const rowsOf = [...new Set(runs.map(r => r.row))], dashes = ["", "6 3", "2 3", "8 3 2 3"];
const colour = r => `var(--c${rowsOf.indexOf(r.row) % 8})`;
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
function chart(panel, shown) {
  const lines = [];
  for (const r of shown) for (const [kind, name] of [["train", panel.train], ["heldout", panel.heldout]]) {
    const s = name && r[kind][name];
    if (s && s[0].length) lines.push({r, kind, steps: s[0], values: s[1]});
  }
  const card = make("div", {class: "card chart", tabindex: "0", role: "img", "aria-label": panel.title},
    make("h3", {}, panel.title));
  const finite = lines.flatMap(l => l.values).filter(v => v !== null);
  if (!finite.length) { card.append(make("p", {class: "faint"}, "not measured in these runs")); return card; }
  let low = Math.min(...finite), high = Math.max(...finite);
  const log = panel.log && low > 0 && high > 10 * low;
  if (panel.percent) { low = 0; high = Math.min(1, Math.max(high * 1.1, 0.05)); }
  if (low === high) { low -= Math.abs(low) * 0.1 || 0.5; high += Math.abs(high) * 0.1 || 0.5; }
  const last = Math.max(...lines.flatMap(l => l.steps), 1), W = 460, H = 250, L = 52, R = 10, T = 8, B = 28;
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
  for (const l of lines) {
    let d = "", pen = "M";
    l.values.forEach((v, i) => {
      if (v !== null) d += `${pen}${x(l.steps[i])},${y(v)}`;
      pen = v === null ? "M" : "L";
    });
    const joined = l.kind === "train" || !panel.train;
    if (joined) el.append(svg("path", {d, fill: "none", stroke: colour(l.r), "stroke-width": 1.8,
      "stroke-dasharray": dash(l.r), "stroke-linejoin": "round"}));
    if (l.kind === "heldout") l.values.forEach((v, i) => v !== null && el.append(
      svg("circle", {cx: x(l.steps[i]), cy: y(v), r: 3.5, fill: colour(l.r), stroke: "var(--card)"})));
  }
  const at = svg("line", {class: "at", y1: T, y2: H - B, visibility: "hidden"});
  const tip = make("div", {class: "tip", hidden: ""});
  el.append(at);
  card.append(el, tip);
  const steps = [...new Set(lines.flatMap(l => l.steps))].sort((a, b) => a - b);
  let cursor = steps.length - 1;
  function show(i) {
    cursor = Math.max(0, Math.min(steps.length - 1, i));
    const s = steps[cursor];
    at.setAttribute("x1", x(s)); at.setAttribute("x2", x(s)); at.setAttribute("visibility", "visible");
    const found = lines.map(l => ({l, i: l.steps.indexOf(s)})).filter(o => o.i >= 0)
      .map(o => ({l: o.l, v: o.l.values[o.i]})).sort((a, b) => b.v - a.v);
    tip.replaceChildren(make("b", {}, `step ${s}`), ...found.slice(0, 14).map(o => {
      const dot = make("span", {}, o.l.kind === "heldout" ? "\u25cf " : "\u2014 ");
      dot.style.color = colour(o.l.r);
      const value = panel.percent && o.v !== null ? `${(100 * o.v).toFixed(1)}%` : short(o.v);
      return make("div", {}, dot, `${value}  ${o.l.r.short}`);
    }), found.length > 14 ? make("div", {}, `and ${found.length - 14} more`) : null);
    tip.hidden = false;
    tip.style.left = x(s) > W / 2 ? "12px" : "auto";  // on the other side of the chart
    tip.style.right = x(s) > W / 2 ? "auto" : "12px";
  }
  const hide = () => { tip.hidden = true; at.setAttribute("visibility", "hidden"); };
  el.addEventListener("pointermove", e => {
    const box = el.getBoundingClientRect(), s = ((e.clientX - box.left) / box.width * W - L) / (W - L - R) * last;
    show(steps.reduce((best, v, i) => Math.abs(v - s) < Math.abs(steps[best] - s) ? i : best, 0));
  });
  el.addEventListener("pointerleave", hide);
  card.addEventListener("blur", hide);
  card.addEventListener("keydown", e => {
    const move = {ArrowLeft: -1, ArrowRight: 1}[e.key];
    if (move) { show(cursor + move); e.preventDefault(); e.stopPropagation(); }
    if (e.key === "Escape") hide();
  });
  return card;
}
function drawCurves() {
  const inBlock = runs.filter(r => r.block === $("block").value);
  const first = inBlock.filter((r, i) => inBlock.findIndex(s => s.row === r.row) === i);
  $("legend").replaceChildren(...first.map(r => {
    const box = make("input", {type: "checkbox"}), line = make("i");
    box.checked = !hidden.has(r.row);
    box.onchange = () => { box.checked ? hidden.delete(r.row) : hidden.add(r.row); drawCharts(inBlock); };
    line.style.borderTopColor = colour(r);
    return make("label", {}, box, line, r.row);
  }));
  drawCharts(inBlock);
}
function drawCharts(list) {
  const shown = list.filter(r => !hidden.has(r.row));
  $("charts").replaceChildren(...data.panels.map(p => chart(p, shown)));
}
const option = (value, text) => make("option", {value}, text);
const blocks = [...new Set(runs.map(r => r.block))];
$("block").append(...blocks.map(b => option(b, b || "all")));
$("block-label").hidden = blocks.length < 2;
$("block").onchange = drawCurves;
drawCurves();

// Chains.
const heat = logp => `rgba(var(--heat),${Math.min(1, -logp / 5) * 0.75})`;
$("scale").append(...[0, -0.5, -1, -2, -5].map(l => {
  const s = make("span", {}, l === -5 ? "-5 nats or less" : String(l));
  s.style.background = heat(l);
  return s;
}));
function tokens(group, logp) {
  return group.tokens.map((text, i) => {
    const scored = group.scored[i], t = make("span", {class: scored ? "tok" : "tok off"}, text);
    if (scored) t.style.background = heat(logp[i]);
    t.onclick = () => { $("token").textContent =
      `${JSON.stringify(text)}  log-prob ${logp[i].toFixed(3)}, probability ${Math.exp(logp[i]).toPrecision(3)}`; };
    t.title = logp[i].toFixed(3);
    return t;
  });
}
function answer(group, logp, where) {
  const total = logp.reduce((sum, l, i) => sum + (group.scored[i] ? l : 0), 0);
  return make("p", {class: "text answer"},
    make("small", {}, `reference answer ${where}: ${total.toFixed(2)} nats`), ...tokens(group, logp));
}
function chainCard(group, c) {
  const split = c.chain.lastIndexOf("</think>");
  const [body, tag] = split < 0 ? [c.chain, ""] : [c.chain.slice(0, split), c.chain.slice(split).replace(/\s+/g, " ")];
  const sign = c.advantage > 0 ? "good" : c.advantage < 0 ? "bad" : "";
  const list = make("dl");
  for (const [name, value] of Object.entries(c.rewards))
    list.append(make("dt", {}, name), make("dd", {}, short(value)));
  return make("article", {class: "card chain"},
    make("header", {}, make("span", {}, "reward ", make("strong", {}, short(c.reward))),
      make("span", {class: sign}, `advantage ${c.advantage > 0 ? "+" : ""}${short(c.advantage)}`),
      c.truncated ? make("span", {class: "bad"}, "never opened the answer") : null),
    make("p", {class: "text"}, body.trim() || "(empty)", make("span", {class: "tag"}, tag),
      c.forced ? make("span", {class: "tag"}, ` [forced: ${c.forced.trim()}]`) : null),
    answer(group, c.logp, "after this chain"),
    c.sampled ? make("p", {class: "text answer"}, make("small", {}, "sampled answer"), c.sampled) : null,
    make("details", {class: "more"}, make("summary", {}, "all rewards"), list));
}
function view(r, step, prompt) {
  const out = make("div", {}, make("h3", {}, r.name));
  const group = r.groups.find(g => g.step === step && g.id === prompt) || r.groups.find(g => g.step === step);
  if (!group) { out.append(make("p", {class: "card"}, "no chain of this step was written")); return out; }
  const best = [...group.chains].sort((a, b) => b.reward - a.reward);
  out.append(
    make("div", {class: "card question"}, make("b", {}, `question ${group.id}, step ${group.step}`), group.prompt,
      group.bare ? answer(group, group.bare, "without a chain") : null),
    make("div", {class: "chains"}, ...best.map(c => chainCard(group, c))));
  return out;
}
const chosen = () => runs[+$("run").value];
function fill(select, options, wanted) {
  select.replaceChildren(...options);
  const values = options.map(o => o.value);
  select.value = values.includes(String(wanted)) ? wanted : values[0] ?? "";
}
function drawChains(step, prompt) {
  const r = chosen();
  if (!r) return;
  const steps = [...new Set(r.groups.map(g => g.step))];
  const nearer = (best, s) => Math.abs(s - step) < Math.abs(best - step) ? s : best;
  const near = steps.reduce(nearer, steps[steps.length - 1]);
  fill($("step"), steps.map(s => option(s, s)), near);
  const ids = r.groups.filter(g => g.step === +$("step").value);
  fill($("prompt"), ids.map(g => option(g.id, g.prompt.slice(0, 80))), prompt);
  const other = runs[+$("beside").value], views = [view(r, +$("step").value, $("prompt").value)];
  if ($("beside").value !== "" && other) views.push(view(other, +$("step").value, $("prompt").value));
  $("rollouts").replaceChildren(make("div", {class: views.length > 1 ? "two pair" : "two"}, ...views));
  $("token").textContent = "";
}
fill($("run"), runs.map((r, i) => option(i, r.name)), Math.max(0, runs.findIndex(r => r.groups.length)));
fill($("beside"), [option("", "nothing"), ...runs.map((r, i) => option(i, r.name))], "");
const again = () => drawChains(+$("step").value, $("prompt").value);
for (const id of ["run", "beside", "step", "prompt"]) $(id).onchange = again;
function move(by, select) {
  const i = select.selectedIndex + by;
  if (i >= 0 && i < select.options.length) { select.selectedIndex = i; again(); }
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
function follow() {
  const found = /^#run=(\d+)(?:&step=(\d+))?$/.exec(location.hash);
  if (!found || !runs[+found[1]]) return;
  $("run").value = found[1];
  drawChains(found[2] ? +found[2] : Infinity, "");
  $("chains").scrollIntoView();
}
addEventListener("hashchange", follow);
drawChains(Infinity, "");
follow();
"""
