// How the program was made: the parts of the compilation, and every pass with what it left.

function stagesView(section) {
  // what comes after the passes has no graph of its own
  const all = [...facts.stages, ...facts.stations.map(([name, seconds]) => [name, seconds, null, null])];
  const total = all.reduce((sum, [, seconds]) => sum + seconds, 0);
  let at = 0, before = null;
  const place = el("div", { id: "stage" });
  const lines = all.map(([name, seconds, changed, ops], k) => {
    const bar = el("span", { class: "timeline", "aria-hidden": "true" }, el("span", {}));
    bar.firstChild.style.marginLeft = `${100 * at / Math.max(total, 1e-12)}%`;
    bar.firstChild.style.width = `${100 * seconds / Math.max(total, 1e-12)}%`;
    at += seconds;
    const change = ops === null ? "" : before === null || ops === before ? `${ops}` : `${ops} (${ops > before ? "+" : "−"}${Math.abs(ops - before)})`;
    before = ops;
    const label = changed ? el("button", { type: "button", class: "link", onclick: () => showStage(k) }, name) : name;
    return el("tr", { class: changed === false ? "faint" : null }, el("th", { scope: "row" }, label), el("td", { class: "number" }, digits(seconds * 1e3)),
      el("td", { class: "wide" }, bar), el("td", { class: "number" }, change), el("td", { class: "extra" }, { true: "changed", false: "nothing to do" }[changed]));
  });
  const head = ["pass", "ms", "when", "ops", ""].map((h, k) => el("th", { scope: "col", class: { 1: "number", 3: "number", 4: "extra" }[k] ?? null }, h));
  section.append(
    el("p", { class: "facts" }, `${time(total)} for ${facts.nodes} nodes; a pass shows the graph that it left.`),
    el("div", { class: "scroll grow", tabindex: "0", role: "region", "aria-label": "Passes" },
      el("table", { class: "stages" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...lines)), place));

  function showStage(k) {
    const [name] = facts.stages[k];
    const code = el("div", {});
    place.replaceChildren(el("h2", { tabindex: "-1" }, `The graph after ${name}`), code);
    showCode(code, texts().stages[k], "graph", `Graph after ${name}`).then(() => place.firstChild.scrollIntoView());
  }
}
