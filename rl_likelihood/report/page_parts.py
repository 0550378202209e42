"""The frame and the style of a report, which page.py fills. No address outside the page is named."""

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
  <p class="faint">{{ runs|length }} runs, {{ done }} finished; {{ chains }} sampled chains\
{% if written > chains %} of {{ written }}, those of evenly spaced steps; all are in the runs' {{ file }}{% endif %}</p>
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
<p class="faint">Points, joined: held-out questions. Lines without points: training, faint beside held-out ones; long
runs as means over some steps. One line a run; seeds differ in dash, and their numbers stand side by side. The reward
in training is shown where all shown runs have the same. Point at a chart, or focus it and use &larr; and &rarr;,
to read its numbers.{% if bare %} Held-out questions are asked without a chain, as it was trained, of: \
{{ bare|join(", ") }}.{% endif %}</p>
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
<td>{{ run.state }}</td><td>{{ run.step }}</td>\
<td>{{ run.chains }}{% if run.written > run.chains %} of {{ run.written }}{% endif %}</td></tr>
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
<span id="scale"></span> Tap one for its number, or go to it by Tab and to the others by the arrow keys: &uarr; and
&darr; find the same token after another chain. Grey ones are not scored. Elsewhere &larr; and &rarr; change the
step, shift with them the run. The address of the page names what is shown.</p>
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
html{scroll-padding-bottom:64px}
@media(prefers-reduced-motion:no-preference){html{scroll-behavior:smooth}}
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
th,td{padding:6px 9px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
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
.chart text{fill:var(--faint);font-size:12px}.chart .grid{stroke:var(--line);stroke-width:1}
.chart .at{stroke:var(--faint);stroke-dasharray:3 3}
.tip{position:absolute;z-index:2;top:34px;max-width:100%;pointer-events:none;background:var(--card);
border:1px solid var(--line);border-radius:6px;padding:5px 9px;box-shadow:0 2px 10px #0003}
.tip table{width:auto;font-size:.78rem;line-height:1.3}.tip th,.tip td{padding:0 0 0 10px;border:0}
.tip th:first-child{padding:0}.tip thead th{font-weight:400;white-space:nowrap}
details{margin:8px 0}summary{cursor:pointer;padding:4px 0}
details img{display:block;width:100%;max-width:1080px;height:auto;border-radius:8px;background:#fff}
:root.dark details img{filter:invert(.88) hue-rotate(180deg)}
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
