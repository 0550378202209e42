// Held-out texts of the last evaluation: prompt, then reference, chain and sampled answer side by side.
function drawTexts() {
  const row = runs[+$("text-run").value].texts[+$("text-question").value];
  const column = (title, text) => make("div", {class: "card"}, make("b", {}, title),
    make("p", {class: "text"}, text || "(empty)"));
  $("text-rows").replaceChildren(make("div", {class: "card question"}, row.prompt),
    make("div", {class: "three"}, column("reference", row.reference), column("chain", row.chain),
      column("sampled answer", row.answer)));
}
function chooseTexts() {  // another run: its questions
  const texts = runs[+$("text-run").value].texts;
  $("text-question").replaceChildren(...texts.map((t, i) => option(i, `${i + 1}: ${t.reference.slice(0, 60)}`)));
  drawTexts();
}
if (runs.some(r => r.texts.length)) {
  $("text-run").replaceChildren(...runs.flatMap((r, i) => r.texts.length ? [option(i, r.name)] : []));
  $("text-run").onchange = chooseTexts;
  $("text-question").onchange = drawTexts;
  chooseTexts();
}
