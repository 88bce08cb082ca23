// The graph after all passes: one block per kernel, view, input and output. A block that is open
// lists its ops; only heights change then, so that nothing jumps aside.

const WIDE = 196, UNIT = WIDE + 28, HIGH = 46, ROW = 19, SPACE = 40;

const blocks = facts.graph.blocks.map(([kind, kernel, content, layer, x, way], k) => {
  const isOps = kind === "kernel" || kind === "view";
  const ops = isOps ? content : [];
  const operators = [...new Set(ops.map((op) => facts.ops[op][0]))];
  const nodes = [...new Set(ops.flatMap((op) => facts.ops[op][2]))];
  return { k, kind, kernel, ops, layer, x: x * UNIT, way: way.map((w) => w * UNIT), blob: isOps ? null : content,
           name: isOps ? operators.join(" + ") : content[0],
           below: isOps ? brief(nodes) || facts.ops[ops[0]][1] : content[1],
           open: false, top: 0, high: HIGH, after: [], before: [] };
});
const edges = facts.graph.edges.map(([from, to, blobs]) => ({ from: blocks[from], to: blocks[to], blobs }));
for (const edge of edges) {
  edge.from.after.push(edge.to);
  edge.to.before.push(edge.from);
}
const layers = [];
for (const block of blocks) (layers[block.layer] ??= []).push(block);
for (const layer of layers) layer.sort((a, b) => a.x - b.x);
const tops = new Float64Array(layers.length), heights = new Float64Array(layers.length);
const blockOfOp = new Map(blocks.flatMap((b) => b.ops.map((op) => [op, b])));
const blockOfKernel = new Map(blocks.filter((b) => b.kernel >= 0).map((b) => [b.kernel, b]));
const hues = palette(facts.kernels.map((kernel) => kernel.template));

// What is drawn between layers: links from one to the next, waypoints through one. Edges of one
// block share their way, and each part of it is drawn once.
const links = layers.map(() => []), passing = layers.map(() => []), straight = [];
for (const block of blocks) {
  block.way.forEach((x, k) => {
    links[block.layer + k].push({ block, from: k ? block.way[k - 1] : block.x, to: x, start: k ? null : block, end: null });
    passing[block.layer + 1 + k].push({ block, x });
  });
}
for (const edge of edges) {
  const { from, to } = edge, span = to.layer - from.layer;
  if (span > 1 && from.way.length < span - 1) straight.push(edge);
  else links[to.layer - 1].push({ block: from, from: span > 1 ? from.way[span - 2] : from.x, to: to.x,
                                  start: span > 1 ? null : from, end: to });
}

/** Heights of layers, after blocks were opened or closed. */
function arrange() {
  let top = 0;
  layers.forEach((layer, k) => {
    let high = 0;
    for (const block of layer) {
      block.high = block.open ? HIGH + ROW * block.ops.length + 8 : HIGH;
      block.top = top;
      high = Math.max(high, block.high);
    }
    tops[k] = top;
    heights[k] = high;
    top += high + SPACE;
  });
}

const canOpen = (block) => block.ops.length > 1;

/** The last layer that begins at or above y, or the first one. */
function layerAt(y) {
  let low = 0, high = tops.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (tops[middle] <= y) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** The block at a place, and the op in it if it is open: null where there is none. */
function hit(x, y) {
  const block = layers[layerAt(y)]?.find((b) => Math.abs(x - b.x) <= WIDE / 2 && y >= b.top && y <= b.top + b.high);
  if (!block) return null;
  const row = Math.floor((y - block.top - HIGH) / ROW);
  return { block, op: block.open && row >= 0 && row < block.ops.length ? block.ops[row] : undefined };
}

/** What selecting a block, or an op in it, means for the other views. */
function chosen(block, op) {
  if (block.blob) return { blob: [...block.blob, block.kind] };
  if (block.kernel < 0) return { op: op ?? block.ops[0] };
  return op === undefined ? { kernel: block.kernel } : { kernel: block.kernel, op };
}

function blockOf(next) {
  if (next.op !== undefined) return blockOfOp.get(next.op);
  if (next.kernel !== undefined) return blockOfKernel.get(next.kernel);
  if (next.blob) return blocks.find((b) => b.blob && b.blob[0] === next.blob[0] && b.kind === next.blob[3]);
  return undefined;
}

/** Ops, inputs and outputs whose names, model nodes, operators or blobs hold the words; kernels by name. */
function search(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const found = [];
  for (const block of blocks) {
    if (block.blob && block.blob[0].toLowerCase().includes(wanted)) found.push({ block, words: `${block.kind} ${block.blob[0]}` });
    const kernel = facts.kernels[block.kernel];
    const named = kernel && (kernel.name.toLowerCase().includes(wanted) || `k${block.kernel}` === wanted);
    if (named) found.push({ block, words: `k${block.kernel} ${kernel.name}` });
    for (const op of block.ops)
      if (opWords[op].includes(wanted)) found.push({ block, op, words: `${facts.ops[op][0]}  ${facts.ops[op][2].join(" + ") || facts.ops[op][1]}` });
  }
  return found;
}

arrange();
