// Chains.
const heat = logp => `rgba(var(--heat),${Math.min(1, -logp / 5) * 0.75})`;
$("scale").append(...[0, -0.5, -1, -2, -5].map(l => {
  const s = make("span", {}, l === -5 ? "-5 nats or less" : String(l));
  s.style.background = heat(l);
  return s;
}));
// By weight: what a token counts in the trained reward, the heaviest one of its answer in full colour.
const byWeight = () => $("colour").value === "weight";
const weighed = (weights, i) => `rgba(var(--heat),${0.75 * weights[i] / Math.max(1e-9, ...weights)})`;
$("colours").hidden = !runs.some(r => r.groups.some(g => g.chains.some(c => c.weights)));
$("colour").onchange = () => drawChains();
function answer(group, logp, where, weights) {
  const total = logp.reduce((sum, l, i) => sum + (group.scored[i] ? l : 0), 0);
  const tokens = group.tokens.map((text, i) => {
    const t = make("span", {class: group.scored[i] ? "tok" : "tok off", tabindex: i ? -1 : 0}, text);
    if (group.scored[i]) t.style.background = byWeight() && weights ? weighed(weights, i) : heat(logp[i]);
    return t;
  });
  const out = make("p", {class: "text answer", role: "group", "aria-label": `reference answer ${where}, by tokens`},
    make("small", {}, `reference answer ${where}: ${total.toFixed(2)} nats`), ...tokens);
  out.of = {group, logp, where, tokens, weights};
  return out;
}
function tell(t) {  // a token's numbers; Tab comes back to it
  const {group, logp, where, tokens, weights} = t.parentNode.of, i = tokens.indexOf(t), empty = group.no_chain;
  for (const other of tokens) if (other.tabIndex === 0) other.tabIndex = -1;
  t.tabIndex = 0;
  $("token").textContent = `${JSON.stringify(group.tokens[i])}  log-prob ${logp[i].toFixed(3)}, probability ` +
    Math.exp(logp[i]).toPrecision(3) + ` ${where}` + (group.scored[i] ? "" : ", not scored") +
    (empty && logp !== empty ? `; ${empty[i].toFixed(3)} without a chain` : "") +
    (weights ? `; weight ${weights[i]}` : "");
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
const signed = x => `${x > 0 ? "+" : ""}${short(x)}`;
function talk(messages) {  // a conversation: what the model writes, and the environment's replies, folded
  let before = null, count = 0;
  return messages.flatMap(m => {
    if (m.role !== "assistant") return [make("details", {class: "reply"}, make("summary", {}, `reply: ${m.text.slice(0, 60)}`),
      make("p", {class: "text"}, m.text))];
    const earned = m.advantage === undefined ? "" : `, advantage ${signed(m.advantage)}`;
    const label = make("small", {}, `model, message ${++count}${earned}`);
    const out = [make("p", {class: "text message"}, label, m.text || "(empty)")];
    if (m.tokens) {
      const p = Math.exp(m.logp.reduce((sum, l) => sum + l, 0) / m.logp.length);
      const gain = before === null ? "" : `, gain of the message before ${signed(p - before)}`;
      before = p;
      out.push(answer(m, m.logp, `before message ${count}, probability ${short(p)} a token (geometric mean)${gain}`));
    }
    return out;
  });
}
function verdicts(rows) {  // of a rubric: how far each criterion is met, and its points
  const list = make("dl");
  for (const v of rows) {
    const met = v.met ?? v.mark;
    list.append(make("dt", {}, v.criterion ? `${v.criterion} (${v.points > 0 ? "+" : ""}${v.points})` : "mark"),
      make("dd", {}, met == null ? "no verdict" : short(met)));
  }
  return make("details", {class: "more", open: ""}, make("summary", {}, "rubric"), list);
}
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
      make("span", {class: sign}, `advantage${c.messages?.some(m => "advantage" in m) ? " of the outcome" : ""} ${signed(c.advantage)}`),
      c.truncated ? make("span", {class: "bad"}, c.messages ? "never ended" : "never opened the answer") : null),
    ...(c.messages ? talk(c.messages) : [
      make("p", {class: "text"}, body.trim() || "(empty)", make("span", {class: "tag"}, tag),
        c.forced ? make("span", {class: "tag"}, ` [forced: ${c.forced.trim()}]`) : null),
      answer(group, c.logp, "after this chain", c.weights)]),
    c.sampled ? make("p", {class: "text answer"}, make("small", {}, "sampled answer"), c.sampled) : null,
    c.verdicts ? verdicts(c.verdicts) : null,
    more);
}
const stepsOf = r => [...new Set(r.groups.map(g => g.step))];
const nearest = (steps, step) => steps.reduce((best, s) => Math.abs(s - step) < Math.abs(best - step) ? s : best,
  steps[steps.length - 1]);
function view(r, step, prompt) {
  const out = make("div", {class: "view"}, make("h3", {}, r.name)), near = nearest(stepsOf(r), step);
  const ofStep = r.groups.filter(g => g.step === near), group = ofStep.find(g => g.id === prompt) || ofStep[0];
  if (!group) { out.append(make("p", {class: "card"}, "this run has written no chains")); return out; }
  const best = [...group.chains].sort((a, b) => b.reward - a.reward);
  const other = Number.isFinite(step) && near !== step ? ` (there are no chains of step ${step})` : "";
  out.append(
    make("div", {class: "card question"},
      make("b", {}, `question ${group.id}, step ${group.step}${other}`), group.prompt,
      group.start ? make("details", {class: "reply"}, make("summary", {}, "what the model reads first"),
        make("p", {class: "text"}, group.start)) : null,
      group.no_chain ? answer(group, group.no_chain, "without a chain") : null),
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
