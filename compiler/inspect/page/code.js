// Texts of kernels: unpacked when they are looked at, coloured where they are in view.

const LEVELS = { ir: "Kernel IR", llvm: "LLVM IR", asm: "Assembly", source: "Python source",
                 ptx: "PTX", sass: "Machine code" };
const CHUNK = 150; // lines that are coloured at once

let packedTexts = null;

function texts() {
  packedTexts ??= JSON.parse(byId("texts").textContent);
  return packedTexts;
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

// One expression per language; the name of the group that matched is the class of the piece.
const NUMBER = String.raw`(?<number>(?<![\w.$%])-?(?:0x[\da-fA-F]+|\d+(?:\.\d*)?(?:e[+-]?\d+)?)\b)`;
const STRING = String.raw`(?<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')`;
const ASSEMBLY = [
  String.raw`(?<comment>#[^\n]*|//[^\n]*|/\*[^\n]*?\*/)`, STRING,
  String.raw`(?<label>^[.\w$]+:)`, String.raw`(?<type>^\s*\.\w+)`,
  String.raw`(?<keyword>(?<=^\s+(?:@!?%?\w+\s+)?)[a-zA-Z][\w.]*)`,
  String.raw`(?<name>%\w+|\$-?\w+|\b[xvwdsqzp]\d+\b)`, NUMBER];
const GRAMMARS = {
  ir: [String.raw`(?<comment>#[^\n]*)`, STRING,
    String.raw`(?<keyword>\b(?:template|parallel|for|in|by|within|if|else|prefetch|far|transpose|local|unroll|vector)\b)`,
    String.raw`(?<type>\b(?:f16|bf16|f32|f64|i8|i16|i32|i64|u8|u16|u32|u64|bool)\b)`,
    String.raw`(?<name>\b\w+(?=\())`, NUMBER],
  llvm: [String.raw`(?<comment>;[^\n]*)`, STRING, String.raw`(?<label>^[\w.$-]+:)`,
    String.raw`(?<name>[%@][\w.$-]+)`, String.raw`(?<type>\b(?:i\d+|float|double|half|bfloat|ptr|void|label|x)\b)`,
    String.raw`(?<keyword>(?<== )[a-z]\w*|(?<=^\s*)[a-z]\w*)`, NUMBER],
  source: [String.raw`(?<comment>#[^\n]*)`, STRING,
    String.raw`(?<keyword>\b(?:def|return|for|while|in|if|elif|else|and|or|not|import|from|as|pass|continue|break|True|False|None)\b)`,
    String.raw`(?<type>@[\w.]+|\b(?:f16|f32|f64|i32|i64|u32|u64)\b)`, String.raw`(?<name>\b\w+(?=\())`, NUMBER],
  graph: [STRING, String.raw`(?<name>[%@](?:[\w.]+|"(?:[^"\\\n]|\\.)*"))`,
    String.raw`(?<keyword>\b(?:graph|const|return|group)\b|(?<== )\w+(?=\())`,
    String.raw`(?<type>\b(?:f16|bf16|f32|f64|i8|i16|i32|i64|u8|u16|u32|u64|bool)\[[^\]]*\](?:@[\dx/]+)*)`,
    String.raw`(?<comment>sha256:\w+|#[^\n]*)`, NUMBER],
  asm: ASSEMBLY, ptx: ASSEMBLY,
  sass: [String.raw`(?<name>\b(?:U?R\d+|U?P\d|U?RZ|U?PT|SR_[\w.]+|c\[0x\w+\]))`,
    String.raw`(?<keyword>(?<=\*/\s+(?:@!?U?P\w+\s+)?)[A-Z][\w.]*)`, ...ASSEMBLY],
};
for (const [level, parts] of Object.entries(GRAMMARS))
  GRAMMARS[level] = new RegExp(parts.join("|"), "gm");

/** The text as nodes, its pieces in spans. */
function coloured(text, level) {
  const out = document.createDocumentFragment();
  let at = 0;
  for (const found of text.matchAll(GRAMMARS[level])) {
    const [kind] = Object.entries(found.groups).find(([, piece]) => piece !== undefined);
    out.append(text.slice(at, found.index), el("span", { class: `c-${kind}` }, found[0]));
    at = found.index + found[0].length;
  }
  out.append(text.slice(at));
  return out;
}

const inView = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    inView.unobserve(target);
    target.replaceChildren(coloured(target.textContent, target.dataset.level));
  }
}, { rootMargin: "400px" });

/** A block of code that can be scrolled and copied. */
function codeBlock(text, level, label) {
  const lines = text.split("\n");
  const pre = el("pre", { class: "code", tabindex: "0", role: "region", "aria-label": label });
  for (let k = 0; k < lines.length; k += CHUNK) {
    const some = lines.slice(k, k + CHUNK);
    const part = el("code", { "data-level": level }, some.join("\n") + (k + CHUNK < lines.length ? "\n" : ""));
    part.style.containIntrinsicSize = `auto ${1.45 * some.length}em`;
    pre.append(part);
    if (level in GRAMMARS) inView.observe(part);
  }
  return pre;
}

/** Puts a packed text into a place, with what can be done with it. */
async function showCode(place, packed, level, label) {
  place.replaceChildren(el("p", { class: "quiet" }, "..."));
  let text;
  try {
    text = await unpack(packed);
  } catch (error) {
    place.replaceChildren(el("p", { class: "quiet" }, `This browser cannot unpack the text: ${error.message}`));
    return;
  }
  const copied = el("button", { type: "button", onclick: async () => {
    await navigator.clipboard.writeText(text).then(() => say("copied"), () => say("not allowed to copy"));
  } }, "Copy");
  const size = text.split("\n").length - 1;
  place.replaceChildren(el("p", { class: "bar" }, el("span", { class: "quiet" }, plural(size, "line")), copied),
    codeBlock(text, level, label));
}
