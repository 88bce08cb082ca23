// Drawing the graph: only what is in view, less of it the smaller it is.

const READABLE = 0.42; // scale below which there are no words
const canvas = el("canvas", { id: "drawing", tabindex: "0", role: "application",
  "aria-label": "Graph: arrows go from block to block, Enter opens a block, plus and minus zoom, 0 shows all" });
const pen = canvas.getContext("2d");
const view = { scale: 1, x: 0, y: 0, wide: 0, high: 0 }; // screen = world * scale + (x, y)
let byTime = false, matches = new Set(), waiting = false, colours = null;

function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; paint(); });
}

function theColours() {
  const names = ["page", "ink", "quiet", "line", "box", "accent", "found", ...Array.from({ length: 8 }, (_, k) => `hue${k}`)];
  return Object.fromEntries(names.map((name) => [name, colour(name)]));
}

function paint() {
  if (!view.wide) return;
  colours ??= theColours();
  const ratio = devicePixelRatio || 1;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, view.wide, view.high);
  pen.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
  const left = -view.x / view.scale, right = left + view.wide / view.scale;
  const top = -view.y / view.scale, bottom = top + view.high / view.scale;
  const first = layerAt(top - SPACE), last = layerAt(bottom), marked = blockOf(selection);
  const crosses = (a, b) => Math.min(a, b) < right && Math.max(a, b) > left;
  pen.lineWidth = Math.max(1, 0.7 / view.scale);
  strokes(colours.line, first, last, crosses, () => true);
  for (const { from, to } of straight)
    if (from.top < bottom && to.top > top && crosses(from.x, to.x)) oneStroke(colours.line, from, to);
  if (marked) {
    pen.lineWidth = Math.max(2, 1.4 / view.scale);
    strokes(colours.accent, first, last, crosses, (link) => link.block === marked || link.end === marked);
  }
  for (let k = first; k <= last; k++)
    for (const block of layers[k])
      if (block.x + WIDE / 2 > left && block.x - WIDE / 2 < right) drawBlock(block, block === marked);
}

/** All links between two layers in one path. */
function strokes(paintedWith, first, last, crosses, wanted) {
  const detailed = view.scale > 0.12;
  pen.strokeStyle = pen.fillStyle = paintedWith;
  pen.beginPath();
  for (let k = Math.max(0, first - 1); k <= last; k++) {
    const low = tops[k] + heights[k];
    for (const pass of passing[k])
      if (crosses(pass.x, pass.x) && wanted(pass)) { pen.moveTo(pass.x, tops[k]); pen.lineTo(pass.x, low); }
    for (const link of links[k]) {
      if (!crosses(link.from, link.to) || !wanted(link)) continue;
      const y = link.start ? link.start.top + link.start.high : low, end = low + SPACE;
      pen.moveTo(link.from, y);
      if (detailed) pen.bezierCurveTo(link.from, (low + end) / 2 + 6, link.to, (low + end) / 2 - 6, link.to, end - (link.end ? 5 : 0));
      else pen.lineTo(link.to, end);
    }
  }
  pen.stroke();
  if (!detailed) return;
  pen.beginPath();
  for (let k = Math.max(0, first - 1); k <= last; k++)
    for (const link of links[k])
      if (link.end && crosses(link.from, link.to) && wanted(link)) {
        pen.moveTo(link.to, link.end.top);
        pen.lineTo(link.to - 4, link.end.top - 7);
        pen.lineTo(link.to + 4, link.end.top - 7);
      }
  pen.fill();
}

function oneStroke(paintedWith, from, to) {
  const y = from.top + from.high;
  pen.strokeStyle = paintedWith;
  pen.beginPath();
  pen.moveTo(from.x, y);
  pen.bezierCurveTo(from.x + WIDE, y + 60, to.x + WIDE, to.top - 60, to.x, to.top);
  pen.stroke();
}

function drawBlock(block, marked) {
  const { x, top, high } = block, left = x - WIDE / 2;
  const hue = block.kind === "kernel" ? colours[hues.get(facts.kernels[block.kernel].template)] : colours.quiet;
  pen.beginPath();
  pen.roundRect(left, top, WIDE, high, block.blob ? 22 : 5);
  pen.fillStyle = colours.box;
  pen.fill();
  const share = block.kind === "kernel" && rows ? rows[block.kernel].share / mostShare : 0;
  pen.globalAlpha = byTime ? 0.05 + 0.4 * Math.sqrt(share) : block.kind === "kernel" ? (view.scale < READABLE ? 0.8 : 0.22) : 0.06;
  pen.fillStyle = byTime ? colours.accent : hue;
  pen.fill();
  pen.globalAlpha = 1;
  const isMatch = matches.has(block);
  pen.strokeStyle = marked ? colours.accent : isMatch ? colours.found : byTime ? colours.line : hue;
  pen.lineWidth = Math.max(marked || isMatch ? 3 : 1, (marked || isMatch ? 3 : 0.6) / view.scale);
  if (block.kind === "view") pen.setLineDash([5, 4]);
  pen.stroke();
  pen.setLineDash([]);
  if (view.scale < READABLE) return;
  pen.fillStyle = colours.ink;
  pen.font = "600 12px system-ui, sans-serif";
  const sign = canOpen(block) ? (block.open ? "▾ " : "▸ ") : "";
  const took = rows && block.kernel >= 0 ? `${microseconds(rows[block.kernel].seconds)} µs` : "";
  const room = took ? 66 : 0;
  label(sign + block.name, left + 9, top + 19, WIDE - 18 - room, 7.2);
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = byTime ? colours.ink : colours.quiet;
  if (took) {
    pen.textAlign = "right";
    pen.fillText(took, left + WIDE - 9, top + 19, room - 4);
    pen.textAlign = "left";
  }
  label(block.below, left + 9, top + 36, WIDE - 18);
  if (!block.open) return;
  pen.beginPath();
  pen.moveTo(left, top + HIGH);
  pen.lineTo(left + WIDE, top + HIGH);
  pen.lineWidth = 1;
  pen.stroke();
  block.ops.forEach((op, k) => {
    const y = top + HIGH + ROW * k;
    if (selection.op === op) {
      pen.globalAlpha = 0.25;
      pen.fillStyle = colours.accent;
      pen.fillRect(left + 1, y + 2, WIDE - 2, ROW);
      pen.globalAlpha = 1;
    }
    pen.fillStyle = colours.ink;
    const [operator, name] = facts.ops[op], room = WIDE - 22 - 6.1 * (operator.length + 2);
    label(operator, left + 12, y + 15, WIDE - 22);
    if (room > 40) label(name, left + WIDE - 10 - room, y + 15, room);
  });
}

/** Words; where there is no room, the end is left out, or of a path the beginning. */
function label(text, x, y, room, each = 6.1) {
  const most = Math.floor(room / each);
  const short = text.startsWith("/") ? `…${text.slice(1 - most)}` : `${text.slice(0, Math.max(1, most - 1))}…`;
  pen.fillText(text.length > most ? short : text, x, y, room);
}

// ------------------------------------------------------------------ moving about

function extent() {
  const xs = blocks.map((b) => b.x);
  const first = Math.min(...xs) - WIDE / 2 - 20, last = Math.max(...xs) + WIDE / 2 + 20;
  const low = layers.length ? tops[layers.length - 1] + heights[layers.length - 1] : 0;
  return { left: first, wide: last - first, top: -20, high: low + 40 };
}

/** All of the graph, or, to begin with, its top at a size that can be read. */
function fit(readable = false) {
  const all = extent();
  const both = Math.min(view.wide / all.wide, view.high / all.high, 1.2);
  view.scale = readable ? Math.max(both, Math.min(0.75, Math.max(view.wide / all.wide, 0.5))) : both;
  view.x = view.wide / 2 - (all.left + all.wide / 2) * view.scale;
  view.y = all.high * view.scale < view.high ? (view.high - all.high * view.scale) / 2 - all.top * view.scale : -all.top * view.scale;
  if (readable && all.wide * view.scale > view.wide && layers.length) view.x = view.wide / 2 - layers[0][0].x * view.scale;
  redraw();
}

function zoom(factor, x = view.wide / 2, y = view.high / 2) {
  const scale = Math.min(3, Math.max(0.004, view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  redraw();
}

function centre(block) {
  if (view.scale < READABLE) view.scale = 0.8;
  view.x = view.wide / 2 - block.x * view.scale;
  view.y = view.high / 2 - (block.top + HIGH / 2) * view.scale;
  redraw();
}

function toggle(block, open = !block.open) {
  if (!canOpen(block)) return;
  block.open = open;
  arrange();
  redraw();
}

const fingers = new Map();
let travelled = 0;

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
  travelled = 0;
});
canvas.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) return;
  const now = { x: event.offsetX, y: event.offsetY };
  if (fingers.size === 2) {
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    const apart = (a) => Math.max(20, Math.hypot(a.x - other.x, a.y - other.y));
    zoom(apart(now) / apart(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
  }
  const part = fingers.size === 2 ? 0.5 : 1;
  view.x += (now.x - before.x) * part;
  view.y += (now.y - before.y) * part;
  travelled += Math.hypot(now.x - before.x, now.y - before.y) + (fingers.size - 1) * 10;
  fingers.set(event.pointerId, now);
  redraw();
});
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
canvas.addEventListener("click", (event) => {
  if (travelled > 5) return;
  const found = hit((event.offsetX - view.x) / view.scale, (event.offsetY - view.y) / view.scale);
  select(found ? chosen(found.block, found.op) : {}, { from: "graph" });
});
canvas.addEventListener("dblclick", (event) => {
  const found = hit((event.offsetX - view.x) / view.scale, (event.offsetY - view.y) / view.scale);
  if (found) toggle(found.block);
});
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.offsetX, event.offsetY);
}, { passive: false });

canvas.addEventListener("keydown", (event) => {
  const at = blockOf(selection);
  const go = (block) => { if (block) select(chosen(block), { from: "keys" }); };
  const beside = (step) => at && layers[at.layer][layers[at.layer].indexOf(at) + step];
  const act = {
    ArrowDown: () => go(at ? at.after[0] : layers[0]?.[0]), ArrowUp: () => go(at ? at.before[0] : layers[0]?.[0]),
    ArrowLeft: () => go(beside(-1)), ArrowRight: () => go(beside(1)), Home: () => go(layers[0]?.[0]),
    Enter: () => at && toggle(at), "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: () => fit(),
  }[event.key];
  if (!act || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  act();
});

function showInGraph(next) {
  const block = blockOf(next);
  if (block) centre(block);
}

// ------------------------------------------------------------------ the view

const MOST_FOUND = 40;

function graphView(section) {
  const found = el("ul", { id: "found", "aria-label": "Found", hidden: true });
  const field = el("input", { type: "search", id: "search", placeholder: "Search nodes, operators, blobs",
    "aria-label": "Search the graph", oninput: list, onfocus: list, onkeydown: (event) => {
      if (event.key === "ArrowDown") found.querySelector("button")?.focus();
      if (event.key === "Enter") found.querySelector("button")?.click();
      if (event.key === "Escape") found.hidden = true;
    } });
  const count = el("span", { class: "quiet" });

  function list() {
    const all = search(field.value);
    matches = new Set(all.map((f) => f.block));
    count.textContent = field.value.trim() ? `${all.length} found` : "";
    found.hidden = !all.length;
    found.replaceChildren(...all.slice(0, MOST_FOUND).map((f) => el("li", {}, el("button", { type: "button", onclick: () => {
      found.hidden = true;
      if (f.op !== undefined && canOpen(f.block)) toggle(f.block, true);
      centre(f.block);
      select(chosen(f.block, f.op), { from: "search" });
    } }, f.words))));
    redraw();
  }
  found.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const all = [...found.querySelectorAll("button")];
    (all[all.indexOf(document.activeElement) + step] ?? field).focus();
    event.preventDefault();
  });
  canvas.addEventListener("pointerdown", () => { found.hidden = true; });

  const button = (words, label, act) => el("button", { type: "button", "aria-label": label, title: label, onclick: act }, words);
  const openAll = (open) => () => { for (const b of blocks) if (canOpen(b)) b.open = open; arrange(); redraw(); };
  const painted = el("select", { id: "painted", "aria-label": "Colour", onchange: () => { byTime = painted.value === "time"; legend(); redraw(); } },
    el("option", { value: "kind" }, "Colour: template"), rows ? el("option", { value: "time" }, "Colour: time") : null);
  const key = el("p", { class: "key" });
  function legend() {
    key.replaceChildren(...(byTime ? [el("span", { class: "quiet" }, "the stronger, the more of the time")]
      : [...hues].map(([name, hue]) => swatch(hue, name))));
  }
  legend();
  section.append(
    el("div", { class: "bar" }, el("div", { class: "finder" }, field, found), count,
      el("span", { class: "buttons" }, button("−", "Zoom out", () => zoom(1 / 1.4)), button("+", "Zoom in", () => zoom(1.4)),
        button("All", "Show all of the graph", () => fit()), button("Open", "Open all kernels: list their operators", openAll(true)),
        button("Close", "Close all kernels", openAll(false))), painted),
    key, el("div", { class: "grow canvas" }, canvas));

  let shown = false;
  new ResizeObserver(() => {
    const { width, height } = canvas.parentElement.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    if (!width || !height) return;
    if (view.wide) { view.x += (width - view.wide) / 2; view.y += (height - view.high) / 2; }
    [view.wide, view.high] = [width, height];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    if (!shown) { shown = true; fit(true); }
    paint();
  }).observe(canvas.parentElement);
  watchers.push((next, { from } = {}) => {
    const block = blockOf(next);
    if (block && from === "keys") intoView(block);
    redraw();
  });
  themeWatchers.push(() => { colours = null; redraw(); });
}

/** Moves a block that is out of sight to the middle. */
function intoView(block) {
  const x = block.x * view.scale + view.x, y = block.top * view.scale + view.y, half = WIDE / 2 * view.scale;
  if (view.scale < READABLE || x < half || x > view.wide - half || y < 0 || y > view.high - HIGH * view.scale) centre(block);
}

function swatch(hue, words) {
  const patch = el("span", { class: "swatch", "aria-hidden": "true" });
  patch.style.background = `var(--${hue})`;
  return el("span", {}, patch, words);
}
