// The table of launches: what each takes, how near it comes to the limits, what else was measured.

const FIRST = 300; // rows that are shown at once

const COLUMNS = [
  { id: "number", head: "#", value: (k) => k },
  { id: "nodes", head: "model nodes", value: (k) => title(facts.kernels[k]),
    show: (k) => brief(facts.kernels[k].nodes) || title(facts.kernels[k]), wide: true },
  { id: "seconds", head: "µs", value: (k) => rows[k].seconds, show: (k) => microseconds(rows[k].seconds), timed: true,
    falls: true },
  { id: "share", head: "share", value: (k) => rows[k].share, show: (k) => meter(rows[k].share / mostShare, rows[k].share),
    timed: true, falls: true, extra: true },
  { id: "gflops", head: "GFLOP/s", value: (k) => rows[k].gflops, show: (k) => digits(rows[k].gflops), timed: true,
    falls: true, extra: true },
  { id: "gbytes", head: "GB/s", value: (k) => rows[k].gbytes, show: (k) => digits(rows[k].gbytes), timed: true,
    falls: true, extra: true },
  { id: "limit", head: "roofline", value: (k) => rows[k].of_limit,
    show: (k) => meter(rows[k].of_limit, rows[k].of_limit), timed: true },
  { id: "bound", head: "bound", value: (k) => bound(k), timed: true, extra: true },
  { id: "flops", head: "MFLOP", value: (k) => facts.kernels[k].flops, show: (k) => digits(facts.kernels[k].flops / 1e6),
    untimed: true, falls: true },
  { id: "bytes", head: "bytes", value: (k) => facts.kernels[k].bytes, show: (k) => bytes(facts.kernels[k].bytes),
    untimed: true, falls: true },
  { id: "name", head: "template", value: (k) => facts.kernels[k].template, extra: true },
  { id: "measured", head: "measured", value: (k) => candidates(k).length, show: (k) => behindWords(k), falls: true,
    extra: true },
  { id: "config", head: "config", value: (k) => facts.kernels[k].config.map((c) => c.join("=")).join(" "), wide: true,
    extra: true },
  { id: "origin", head: "from", value: (k) => facts.kernels[k].origin, wide: true, extra: true },
].filter((c) => (rows ? !c.untimed : !c.timed) && (c.id !== "measured" || facts.measured.problems.length));

const LEFT = new Set(["nodes", "bound", "name", "config", "origin", "measured"]);
const mostShare = rows ? Math.max(...rows.map((r) => r.share), 1e-12) : 1;
const bound = (k) => (rows[k].bound === "compute" ? "peak" : rows[k].level);

function meter(filled, value) {
  const bar = el("span", { class: "meter", "aria-hidden": "true" });
  bar.style.setProperty("--filled", Math.min(1, filled));
  return el("span", {}, bar, percent(value));
}

const candidates = (k) => facts.measured.problems[facts.measured.launches[k]]?.rows ?? [];

/** "12, runs +0.3 %": how many were measured, and how far what runs is behind the best. */
function behindWords(k) {
  const found = candidates(k);
  if (!found.length) return "-";
  const runs = found.find((row) => row[7].includes("runs"));
  const where = runs === undefined ? "this one not" : runs[5] ? `runs +${percent(runs[5])}${runs[6] ? " ?" : ""}` : "runs best";
  return `${found.length}, ${where}`;
}

const words = facts.kernels.map((kernel) => [kernel.name, ...kernel.nodes, ...kernel.operators, kernel.origin,
  ...kernel.config.map((c) => c.join("="))].join("\n").toLowerCase());

let sorted = { id: rows ? "seconds" : "number", falls: Boolean(rows) };
let limit = FIRST;

function kernelsView(section) {
  const filter = el("input", { type: "search", id: "filter", placeholder: "Filter kernels", "aria-label": "Filter kernels",
    oninput: () => { limit = FIRST; fill(); } });
  const count = el("span", { class: "quiet", id: "count" });
  const heads = COLUMNS.map((c) => el("th", { scope: "col", class: css(c) },
    el("button", { type: "button", onclick: () => sortBy(c) }, c.head)));
  const body = el("tbody", {});
  const more = el("button", { type: "button", class: "more", onclick: () => { limit = Infinity; fill(); } });

  function sortBy(column) {
    sorted = { id: column.id, falls: sorted.id === column.id ? !sorted.falls : Boolean(column.falls) };
    fill();
  }

  function fill() {
    const wanted = filter.value.trim().toLowerCase();
    const column = COLUMNS.find((c) => c.id === sorted.id);
    const found = facts.kernels.map((_, k) => k).filter((k) => words[k].includes(wanted));
    const values = new Map(found.map((k) => [k, column.value(k)]));
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    found.sort((a, b) => (sorted.falls ? -1 : 1) * compare(values.get(a), values.get(b)) || a - b);
    body.replaceChildren(...found.slice(0, limit).map(line));
    heads.forEach((th, k) => {
      const mine = COLUMNS[k].id === sorted.id;
      if (mine) th.setAttribute("aria-sort", sorted.falls ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    count.textContent = wanted ? `${found.length} of ${plural(facts.kernels.length, "kernel")}`
      : plural(facts.kernels.length, "kernel");
    more.hidden = found.length <= limit;
    more.textContent = `Show all ${found.length}`;
  }

  function line(k) {
    const cells = COLUMNS.map((c) => {
      const shown = c.show ? c.show(k) : c.value(k);
      const inner = c.id === "number" ? el("button", { type: "button", class: "link", "aria-label": `Kernel ${k}: ${title(facts.kernels[k])}` }, `k${k}`)
        : shown;
      return el(c.id === "number" ? "th" : "td", { class: css(c), scope: c.id === "number" ? "row" : null,
        title: c.wide ? String(c.value(k)) : null }, inner);
    });
    return el("tr", { "data-kernel": k, class: selection.kernel === k ? "mark" : null, onclick: () => select({ kernel: k }) },
      ...cells);
  }

  function css(c) {
    return [c.id, LEFT.has(c.id) ? "" : "number", c.extra ? "extra" : ""].filter(Boolean).join(" ");
  }

  watchers.push(() => {
    for (const tr of body.children) tr.classList.toggle("mark", Number(tr.dataset.kernel) === selection.kernel);
  });
  fill();
  section.append(el("div", { class: "bar" }, filter, count),
    el("div", { class: "scroll grow", tabindex: "0", role: "region", "aria-label": "Kernels" },
      el("table", { class: "kernels" }, el("thead", {}, el("tr", {}, ...heads)), body), more));
}
