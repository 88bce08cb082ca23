// The panel beside the views: everything about the kernel, op or blob that is selected.

const details = byId("details");
let opener = null; // what had the focus before the panel opened

watchers.push((next, { reveal = true } = {}) => {
  const shown = next.kernel !== undefined ? kernelDetails(next.kernel, next.op)
    : next.op !== undefined ? opDetails(next.op)
    : next.blob !== undefined ? blobDetails(next.blob) : null;
  if (shown === null) {
    closeDetails();
    return;
  }
  if (!reveal && details.hidden) return;
  if (details.hidden) opener = document.activeElement;
  details.hidden = false;
  byId("main").classList.add("split");
  details.replaceChildren(...shown);
  details.scrollTop = 0;
  const heading = details.querySelector("h2");
  if (narrow.matches && reveal) heading.focus();
  say(heading.textContent);
});

const narrow = matchMedia("(max-width: 820px)");

function closeDetails() {
  if (details.hidden) return;
  details.hidden = true;
  byId("main").classList.remove("split");
  if (opener?.isConnected) opener.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !details.hidden) select({});
});

function head(words, below) {
  return el("div", { class: "head" },
    el("div", {}, el("h2", { tabindex: "-1" }, words), below ? el("p", { class: "quiet" }, below) : null),
    el("button", { type: "button", class: "close", "aria-label": "Close the details",
                   onclick: () => select({}) }, "×"));
}

/** Pairs of words and what they mean, which may be an element. */
function pairs(list) {
  const shown = list.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", {}, ...shown.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function table(header, lines, attributes = {}) {
  const cell = (tag) => (words, k) =>
    el(tag, { class: header[k].startsWith(">") ? "number" : null, scope: tag === "th" ? "col" : null }, words);
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": attributes.label ?? "Table" },
    el("table", {}, el("thead", {}, el("tr", {}, ...header.map((h, k) => cell("th")(h.replace(/^>/, ""), k)))),
      el("tbody", {}, ...lines.map((line) => el("tr", { class: line.mark ?? null }, ...line.cells.map(cell("td")))))));
}

const list = (words) => el("ul", {}, ...words.map((w) => el("li", {}, w)));

// ------------------------------------------------------------------ kernels

let level = "overview";

function kernelDetails(number, op) {
  const kernel = facts.kernels[number];
  const code = texts().kernels[kernel.code];
  const place = el("div", { id: "level", role: "tabpanel" });
  const levels = ["overview", ...Object.keys(code)];
  if (op !== undefined || !levels.includes(level)) level = "overview";
  const show = (next) => {
    level = next;
    for (const tab of tabs.children) {
      const chosen = tab.dataset.level === next;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
    }
    place.setAttribute("aria-labelledby", `level-${next}`);
    if (next === "overview") place.replaceChildren(...overview(kernel, number, op));
    else showCode(place, code[next], next, `${LEVELS[next]} of ${kernel.name}`);
  };
  const tabs = el("div", { role: "tablist", class: "levels", "aria-label": "Levels" },
    ...levels.map((name) => el("button", { type: "button", role: "tab", id: `level-${name}`, "data-level": name,
      "aria-controls": "level", onclick: () => show(name) }, LEVELS[name] ?? "Overview")));
  arrowKeys(tabs);
  show(level);
  return [head(`k${number} ${kernel.name}`, title(kernel)), tabs, place];
}

/** Left and right go through the tabs of a list. */
function arrowKeys(tabs) {
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const all = [...tabs.children];
    const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    next.focus();
    next.click();
    event.preventDefault();
  });
}

function overview(kernel, number, op) {
  const row = rows?.[number];
  const steps = [
    el("button", { type: "button", onclick: () => openView("graph", () => showInGraph({ kernel: number })) }, "Show in graph"),
    el("button", { type: "button", onclick: () => openView("memory", () => showStep(number)) }, "Show in memory")];
  const same = facts.kernels.filter((k) => k.code === kernel.code).length;
  return [
    el("p", { class: "bar" }, ...steps),
    op === undefined ? null : el("h3", {}, "Operator"),
    op === undefined ? null : opFacts(op),
    el("h3", {}, "Kernel"),
    pairs([
      ["Time", row && `${time(row.seconds)}, ${percent(row.share)} of the program`],
      ["Reached", row && `${digits(row.gflops)} GFLOP/s, ${digits(row.gbytes)} GB/s`],
      ["Roofline", row && `${percent(row.of_limit)} of what ${row.bound === "compute" ? "the multiply-add peak"
        : `the bandwidth of ${row.level}`} allows`],
      ["Work", `${(kernel.flops / 1e6).toFixed(2)} MFLOP, ${bytes(kernel.bytes)} at least`],
      ["Config", kernel.config.map((c) => c.join("=")).join(" ") || "the only one there is"],
      ["From", kernel.origin],
      ["Code", same > 1 ? `shared by ${same} launches` : null],
      ["Notes", kernel.notes.length ? list(kernel.notes) : null],
      ["Nodes", kernel.nodes.length ? list(kernel.nodes) : null],
      ["Operators", kernel.operators.join(" + ")],
    ]),
    ...(kernel.seams.length ? [el("h3", {}, "Not fused with"), list(kernel.seams.map(([blob, other, why]) =>
      `${other}, which reads ${blob}: ${why}`))] : []),
    ...alternatives(number),
    el("h3", {}, "Operands"),
    table(["", "role", "elements", "blob", "packed"], kernel.args.map((a) => ({ cells: a.map(String) })),
      { label: "Operands" }),
  ].filter((part) => part !== null);
}

/** What tuning measured of the same problem, and how far each is behind the best. */
function alternatives(number) {
  const problem = facts.measured.problems[facts.measured.launches[number]];
  if (!problem) return [el("h3", {}, "Alternatives"), el("p", { class: "quiet" },
    "Nothing is on record for this problem on this device: tilewright tune measures alternatives.")];
  const lines = problem.rows.map(([template, config, seconds, low, high, behind, tied, marks]) => ({
    mark: marks.includes("runs") ? "mark" : null,
    cells: [microseconds(seconds), `${microseconds(low)} to ${microseconds(high)}`,
            behind ? `+${percent(behind)}${tied ? " ?" : ""}` : "best", `${template} ${config}`, marks.join(", ")] }));
  const failed = problem.failed ? `, ${problem.failed} more failed` : "";
  return [el("h3", {}, "Alternatives"),
    el("p", { class: "quiet" }, `${plural(problem.rows.length, "candidate")} measured${failed}; +x % is behind the ` +
      "best; with ?, the intervals meet, so that no difference can be shown."),
    table([">µs", "95 % interval", ">behind", "candidate", ""], lines, { label: "Alternatives that were measured" })];
}

// ------------------------------------------------------------------ ops and blobs

const blobWords = ([name, type, role]) => `${name}  ${type}${role === "intermediate" ? "" : `  ${role}`}`;

function opFacts(number) {
  const [operator, name, source, attributes, reads, writes] = facts.ops[number];
  return pairs([
    ["Operator", operator], ["Name", name],
    ["Nodes", source.length ? list(source) : null],
    ["Attributes", attributes.length ? list(attributes.map(([k, v]) => `${k} = ${v}`)) : null],
    ["Reads", list(reads.map(blobWords))], ["Writes", list(writes.map(blobWords))],
  ]);
}

function opDetails(number) {
  return [head(facts.ops[number][1] || facts.ops[number][0], "no kernel: a view of what it reads"), opFacts(number)];
}

function blobDetails([name, type, role, kind]) {
  return [head(name, `${kind} of the program`), pairs([["Type", type], ["Role", role]])];
}
