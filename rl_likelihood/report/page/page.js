// The data are JSON, in gzip, in base64.
const packed = Uint8Array.from(atob(document.getElementById("data").textContent), c => c.charCodeAt(0));
if (!("DecompressionStream" in window))
  document.body.prepend("This page needs a browser from 2023 or later: yours lacks DecompressionStream.");
const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
const data = await new Response(stream).json(), runs = data.runs;
const $ = id => document.getElementById(id);
function make(tag, attributes, ...inside) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes || {})) if (v !== null) e.setAttribute(k, v);
  e.append(...inside.filter(x => x !== null));
  return e;
}
const option = (value, text) => make("option", {value}, text);
const short = x => x === null ? "not finite" : Math.abs(x) >= 1000 ? x.toFixed(0)
  : Math.abs(x) >= 0.1 || x === 0 ? x.toFixed(Math.abs(x) >= 100 ? 1 : 3) : x.toPrecision(3);

// Theme: the system's, until the button is used.
const system = matchMedia("(prefers-color-scheme: dark)");
let theme = null;
const paint = () => { document.documentElement.className = theme || (system.matches ? "dark" : "light"); };
system.addEventListener("change", paint);
$("theme").onclick = () => { theme = document.documentElement.className === "dark" ? "light" : "dark"; paint(); };
paint();
