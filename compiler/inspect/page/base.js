// What all views share: the data, elements, numbers for people, and what is selected.

const facts = JSON.parse(document.getElementById("facts").textContent);
const rows = facts.profile ? facts.profile.rows : null;

/** An element. Children that are no elements become text: nothing is ever parsed as markup. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  dress(made, attributes);
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
}

/** The same for drawings. */
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  dress(made, attributes);
  made.append(...children);
  return made;
}

function dress(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
}

const byId = (id) => document.getElementById(id);

/** Tells those who do not see the screen. */
function say(words) {
  byId("said").textContent = words;
}

// ------------------------------------------------------------------ numbers for people

function digits(x) {
  const size = Math.abs(x);
  return size < 10 ? x.toFixed(2) : size < 100 ? x.toFixed(1) : Math.round(x).toString();
}

function time(seconds) {
  for (const [unit, scale] of [["s", 1], ["ms", 1e-3], ["µs", 1e-6]])
    if (seconds >= scale) return `${digits(seconds / scale)} ${unit}`;
  return `${digits(seconds * 1e9)} ns`;
}

function bytes(count) {
  let size = count;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (size < 1024) return unit === "B" ? `${count} B` : `${size.toFixed(1)} ${unit}`;
    size /= 1024;
  }
  return `${size.toFixed(1)} TiB`;
}

const percent = (x) => `${(100 * x).toFixed(Math.abs(x) < 0.0995 ? 1 : 0)} %`;
const microseconds = (seconds) => digits(seconds * 1e6);
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

/** The least of 1, 2, 5, 10, 20 and so on, or their fractions, that is not less. */
function pace(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1e-12)));
  return [1, 2, 5, 10].map((k) => k * power).find((k) => k >= least);
}

// ------------------------------------------------------------------ what is selected

/** {kernel: number of a launch} and, where one of its ops is meant, {op: number}; {op} alone for
 * an op without a kernel; {blob} for an input or an output. */
let selection = {};
const watchers = [];

function select(next, options = {}) {
  selection = next;
  for (const watch of watchers) watch(next, options);
}

/** The words that a search looks through, in lower case. */
const opWords = facts.ops.map((op) =>
  [op[0], op[1], ...op[2], ...op[5].map((b) => b[0])].join("\n").toLowerCase());

const title = (kernel) => kernel.nodes.join(" + ") || kernel.operators.join(" + ");

/** Names on one line: what begins like the one before it, up to a slash, comes without that. */
function brief(names) {
  const scope = (name) => name.slice(0, name.lastIndexOf("/") + 1);
  return names.map((name, k) => (k && scope(name) === scope(names[k - 1]) ? name.slice(scope(name).length) : name)).join(" + ");
}

// ------------------------------------------------------------------ colours

const probe = el("span", { class: "unseen", "aria-hidden": "true" });
document.body.append(probe);

/** A colour of the style sheet as a canvas takes it. */
function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

/** A hue by the place of a word in a list of words, the most frequent ones first. */
function palette(words) {
  const count = new Map();
  for (const w of words) count.set(w, (count.get(w) ?? 0) + 1);
  const ordered = [...count.keys()].sort((a, b) => count.get(b) - count.get(a));
  return new Map(ordered.map((w, k) => [w, `hue${Math.min(k, 7)}`]));
}
