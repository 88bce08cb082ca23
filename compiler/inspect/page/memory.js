// Who lies where in the arena, and when: steps across, addresses up.

const MEMORY_KINDS = { blob: "hue0", "in place": "hue2", scratch: "hue1", donated: "hue3" };
const THIN = 3; // pixels below which a box has no edges
const WIDEST = 30000; // pixels

let shownStep = -1;
let drawMemory = () => {};

function memoryView(section) {
  const m = facts.memory, boxes = m.boxes;
  const gap = m.arena - m.bound;
  const chart = svg("svg", { id: "chart", role: "application", tabindex: "0",
    "aria-label": "Memory: left and right go from block to block" });
  const line = el("p", { id: "block", class: "readout", role: "status" }, "A box is one block of memory; choose one.");
  const place = el("div", { class: "grow chart" }, chart);
  let stretch = 1;
  const widen = (factor) => () => { stretch = Math.max(1, stretch * factor); drawMemory(); };
  const used = new Set(boxes.map((b) => b[0]));
  section.append(
    el("p", { class: "facts" }, `Arena ${bytes(m.arena)}, ${gap ? `${bytes(gap)} above the lower bound` : "the least there can be in this order"}; ` +
      `${bytes(m.unshared)} if nothing shared memory; ${plural(m.steps.length, "step")}, ${plural(boxes.length, "block")}.`),
    el("p", { class: "key" }, ...Object.entries(MEMORY_KINDS).filter(([kind]) => used.has(kind)).map(([kind, hue]) => swatch(hue, kind)),
      el("span", {}, el("span", { class: "stroke alive" }), "bytes alive"), el("span", {}, el("span", { class: "stroke peak" }), "step that needs most"),
      el("span", { class: "buttons" }, el("button", { type: "button", "aria-label": "Fewer pixels a step", onclick: widen(0.5) }, "−"),
        el("button", { type: "button", id: "widen", "aria-label": "More pixels a step", onclick: widen(2) }, "+"))),
    place, line);
  let chosenBox = -1, rects = [];

  drawMemory = () => {
    const outer = place.getBoundingClientRect(), height = outer.height - (stretch > 1 ? 16 : 0);
    if (!outer.width || height <= 0) return;
    const middle = (place.scrollLeft + outer.width / 2) / Math.max(place.scrollWidth, 1);
    const width = Math.min(outer.width * stretch, Math.max(WIDEST, outer.width));
    chart.style.width = `${width}px`;
    chart.style.height = `${height}px`;
    const left = 52, right = width - 8, top = 8, low = height - 34;
    const x = (step) => left + (right - left) * step / Math.max(m.steps.length, 1);
    const y = (address) => low - (low - top) * address / Math.max(m.highest, 1);
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [...axes(m, x, y, left, right, low)];
    if (shownStep >= 0) parts.push(svg("rect", { class: "step", x: x(shownStep), y: top, width: Math.max(2, x(1) - x(0)), height: low - top }));
    rects = boxes.map((box, k) => {
      const [kind, first, last, size, , address] = box;
      const wide = Math.max(x(last + 1) - x(first), 0.7), high = Math.max(y(address) - y(address + size), 0.7);
      const rect = svg("rect", { x: x(first), y: y(address) - high, width: wide, height: high, "data-box": k,
        class: `box${Math.min(wide, high) < THIN ? " thin" : ""}${k === chosenBox ? " mark" : ""}` });
      rect.style.fill = `var(--${MEMORY_KINDS[kind]})`;
      return rect;
    });
    parts.push(...rects, ...boxes.flatMap((box) => boxWords(box, x, y)));
    const corners = m.alive.flatMap((size, k) => [`${x(k).toFixed(1)},${y(size).toFixed(1)}`, `${x(k + 1).toFixed(1)},${y(size).toFixed(1)}`]);
    parts.push(svg("polyline", { class: "alive", points: corners.join(" ") }));
    if (m.peak >= 0) parts.push(svg("line", { class: "peak", x1: x(m.peak + 0.5), x2: x(m.peak + 0.5), y1: top, y2: low }));
    parts.push(svg("line", { class: "limit", x1: left, x2: right, y1: y(m.arena), y2: y(m.arena) }));
    chart.replaceChildren(...parts);
    chart.classList.toggle("dense", x(1) - x(0) < 4);
    if (stretch > 1) place.scrollLeft = middle * width - outer.width / 2;
  };

  function choose(k) {
    rects[chosenBox]?.classList.remove("mark");
    chosenBox = k;
    if (k < 0) { line.textContent = "A box is one block of memory; choose one."; return; }
    rects[k].classList.add("mark");
    const [kind, first, last, size, offset, , names, holds] = boxes[k];
    const steps = first === last ? `step ${first}, ${m.steps[first]}` : `steps ${first} to ${last}, ${m.steps[first]} ... ${m.steps[last]}`;
    const goes = [...new Set([first, last])].map((step) => el("button", { type: "button", class: "link",
      onclick: () => select({ kernel: step }) }, `k${step}`));
    line.replaceChildren(el("strong", {}, names.join(" then ")), ` ${kind}, ${bytes(size)} at ${offset.toLocaleString("en")}, ${steps}`,
      holds.length ? `, holds ${holds.slice(0, 8).join(", ")}${holds.length > 8 ? ` and ${holds.length - 8} more` : ""}` : "", " ", ...goes);
  }

  chart.addEventListener("click", (event) => {
    const box = event.target.dataset?.box;
    choose(box === undefined ? -1 : Number(box));
  });
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Enter" && chosenBox >= 0) select({ kernel: boxes[chosenBox][1] });
    if (!step || !boxes.length) return;
    choose((chosenBox + step + boxes.length) % boxes.length);
    event.preventDefault();
  });
  new ResizeObserver(() => drawMemory()).observe(place);
  watchers.push((next) => { if (next.kernel !== undefined) { shownStep = next.kernel; drawMemory(); } });
}

function* axes(m, x, y, left, right, low) {
  const [unit, size] = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 1024], ["B", 1]].find(([, s]) => s <= m.highest || s === 1);
  const step = pace(m.highest / size / 6);
  for (let k = 0; k * step * size <= m.arena; k++) {
    const at = y(k * step * size);
    yield svg("line", { class: "grid", x1: left, x2: right, y1: at, y2: at });
    yield svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, `${+(k * step).toFixed(3)}`);
  }
  yield svg("text", { x: 4, y: 18 }, unit);
  const every = Math.max(1, pace(m.steps.length / Math.max(2, (right - left) / 70)));
  for (let k = 0; k < m.steps.length; k += every)
    yield svg("text", { x: x(k + 0.5), y: low + 15, "text-anchor": "middle" }, `${k}`);
  yield svg("text", { x: (left + right) / 2, y: low + 30, "text-anchor": "middle" }, "step");
}

/** The name of a box, where there is room for it. */
function boxWords([, first, last, size, , address, names], x, y) {
  const room = Math.floor((x(last + 1) - x(first) - 6) / 6.3), high = y(address) - y(address + size);
  if (high < 14 || room < 5) return [];
  const name = names.join(" / ");
  return [svg("text", { class: "inside", x: x(first) + 4, y: y(address + size) + 12 }, name.length > room ? `${name.slice(0, room - 1)}…` : name)];
}

/** Draws the step of a kernel where memory is looked at. */
function showStep(step) {
  shownStep = step;
  drawMemory();
}
