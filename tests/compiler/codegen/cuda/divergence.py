"""Which instructions of PTX only a part of a warp comes to.

Instructions such as `bar.sync` and `mma.sync` are undefined where the threads of a warp do not
execute them together (PTX ISA, ".aligned"), and the simulator cannot show that: it runs the source,
in which a barrier stands once, and not what LLVM makes of it. So this reads the PTX. A branch
divides a warp if its predicate may differ between the warp's threads; what such a branch decides
about, up to the place where both ways meet again, must hold no instruction of that kind.

Registers have one of three values, whichever assignment reaches them: the same in all threads of a
warp; `NUMBER`, where the upper bits are and the lower five are those of the lane, as in the
thread's number; or anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SAME, NUMBER, ANY = 0, 1, 2
TOGETHER = re.compile(
    r"\b(bar\.sync|barrier\.(cta\.)?sync(?!\.unaligned)|barrier\S*\.aligned|wgmma\.|mma\.sync|"
    r"ldmatrix|stmatrix|shfl\.sync|setmaxnreg|redux\.sync|vote\.sync)"
)
_REGISTER = re.compile(r"%(?!tid|ctaid|ntid|nctaid|laneid|clock)[a-z]+\d+\b")
_BRANCH = re.compile(r"(?:@(!?)(%p\d+)\s+)?bra(?:\.uni)?\s+(\$\w+)\Z")
_ENDS = re.compile(r"(ret|exit|trap)\b")
_OF_THE_LANE = ("atom", "ldmatrix", "mma", "shfl.sync.bfly", "ld.local")
_WRITES_NOTHING = (
    "st.", "red.", "bar", "bra", "ret", "cp.", "membar", "fence", "mbarrier", "prefetch", "mapa",
    "setmaxnreg", "stmatrix", "wgmma.fence", "wgmma.commit", "wgmma.wait", "{", ".reg", "again",
)  # fmt: skip


@dataclass
class Block:
    name: str
    code: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    predicate: str = ""  # of the branch at its end


def undivided(ptx: str) -> list[str]:
    """The instructions of all kernels that a part of a warp comes to, with where they are."""
    found = []
    for name, body in re.findall(r"\.entry (\w+)\(.*?\n\{\n(.*?)\n\}", ptx, re.DOTALL):
        blocks = _blocks(body)
        held = _values(blocks)
        for k, region in _divided(blocks, held):
            why = f"of which {blocks[k].predicate} decides"
            code = [(b, x) for b in sorted(region) for x in blocks[b].code]
            found += [f"{name}: {x[:60]} in {b}, {why}" for b, x in code if TOGETHER.search(x)]
    return found


# --------------------------------------------------------------------------- reading


def _blocks(body: str) -> dict[str, Block]:
    now = Block("start")
    blocks = {"start": now}

    def begin(name: str) -> Block:
        return blocks.setdefault(name, Block(name))

    for kind, text in _instructions(body):
        if kind == "label":
            if now.name != text:
                _falls_to(now, text)
            now = begin(text)
            continue
        if (branch := _BRANCH.match(text)) is not None:
            now.after.append(branch[3])
            over = f"{now.name}+" if branch[2] else ""
            if branch[2]:
                now.predicate = branch[2]
                now.after.append(over)
            now = begin(over) if over else Block("nowhere")
        else:
            now.code.append(text)
            if _ENDS.match(text):
                now.after.append("end")
                now = Block("nowhere")
    if now.name != "nowhere":
        _falls_to(now, "end")
    blocks["end"] = Block("end")
    return blocks


def _falls_to(block: Block, name: str) -> None:
    if block.name != "nowhere":
        block.after.append(name)


def _instructions(body: str) -> Iterator[tuple[str, str]]:
    """Labels and instructions; a piece of inline PTX is one instruction."""
    for piece in re.split(r"(// begin inline asm\n.*?// end inline asm)", body, flags=re.DOTALL):
        if piece.startswith("// begin"):
            yield "code", " ".join(x for x in piece.splitlines() if "inline asm" not in x).strip()
            continue
        for line in piece.splitlines():
            line = line.split("//")[0].strip()
            if line.startswith("$") and line.endswith(":"):
                yield "label", line[:-1]
            elif line and not line.startswith("."):
                yield from (("code", x.strip()) for x in line.split(";") if x.strip(" {}"))


# --------------------------------------------------------------------------- values


def _values(blocks: Mapping[str, Block]) -> dict[str, int]:
    """What every register may hold, as far as it is not the same everywhere."""
    held: dict[str, int] = {}
    code = {b.name: [(*_assigned(x), x) for x in b.code] for b in blocks.values()}
    meet, needed = _meeting(blocks), _needed(blocks, code)
    while True:
        before = dict(held)
        for written, read, text in (x for block in code.values() for x in block):
            value = _value(text, read, held)
            for r in written:
                held[r] = max(held.get(r, SAME), value)
        for k, region in _divided(blocks, held):
            # Whoever comes from elsewhere, or leaves a loop later, finds another value.
            changed = {r for b in region for written, _, _ in code[b] for r in written}
            held |= dict.fromkeys(changed & needed[meet[k]], ANY)
        if held == before:
            return held


def _needed(
    blocks: Mapping[str, Block], code: Mapping[str, Sequence[tuple[list[str], list[str], str]]]
) -> dict[str, set[str]]:
    """The registers that are read at the beginning of every block or later, before they are set."""
    needed: dict[str, set[str]] = {}
    fixed: dict[str, set[str]] = {}
    for name, b in blocks.items():
        now, fixed[name] = {b.predicate} - {""}, set()
        for written, read, _ in reversed(code[name]):
            now = (now - set(written)) | set(read)
            fixed[name] |= set(written)
        needed[name] = now
    changed = True
    while changed:
        changed = False
        for name, b in reversed(blocks.items()):
            more = {r for x in b.after for r in needed[x]} - fixed[name] - needed[name]
            needed[name] |= more
            changed |= bool(more)
    return needed


def _assigned(text: str) -> tuple[list[str], list[str]]:
    """(registers that are written, registers that are read)."""
    if ";" in text:
        parts = [_assigned(x.strip()) for x in text.split(";")]
        return [r for w, _ in parts for r in w], [r for _, read in parts for r in read]
    registers = _REGISTER.findall(text)
    plain = text.split(None, 1)[1] if text.startswith("@") else text
    if plain.startswith(_WRITES_NOTHING):
        return [], registers
    head = re.match(r"(?:@\S+\s+)?\S+\s+(\{[^}]*\}|[^,]*)", text)
    written = _REGISTER.findall(head[1]) if head else []
    return written, registers[len(written) :] + (re.findall(r"@!?(%p\d+)", text) if written else [])


def _value(text: str, read: Sequence[str], held: Mapping[str, int]) -> int:
    worst = max((held.get(r, SAME) for r in read), default=SAME)
    op, _, rest = text.partition("\t") if "\t" in text else text.partition(" ")
    if "%tid" in text:
        return NUMBER
    if "%laneid" in text or op.startswith(_OF_THE_LANE):
        return ANY
    if op.startswith("shfl.sync.idx"):
        lane = rest.split(",")[2].strip()
        return SAME if held.get(lane, SAME) == SAME else ANY
    if worst != NUMBER:
        return worst
    last = rest.split(",")[-1].strip()
    number = int(last) if re.fullmatch(r"-?\d+", last) else None
    if op.startswith(("mov", "cvt")):
        return NUMBER
    if number is None:
        return ANY
    if op.startswith("shr") and number >= 5:
        return SAME
    if op.startswith("and"):
        return SAME if number % 32 == 0 else NUMBER if number % 32 == 31 else ANY
    if op.startswith("add") and number % 32 == 0:
        return NUMBER
    if op.startswith("setp"):
        whole = number % 32 == 0 if re.search(r"\.(lt|ge|lo|hs)\.", op) else number % 32 == 31
        return SAME if whole and not re.search(r"\.(eq|ne)\.", op) else ANY
    return ANY


# --------------------------------------------------------------------------- ways


def _divided(
    blocks: Mapping[str, Block], held: Mapping[str, int]
) -> Iterator[tuple[str, set[str]]]:
    """(block, what its branch decides about), of branches that divide a warp."""
    meet = _meeting(blocks)
    for k, b in blocks.items():
        if b.predicate and held.get(b.predicate, SAME) != SAME:
            region: set[str] = set()
            waiting = [x for x in b.after if x != meet[k]]
            while waiting:
                x = waiting.pop()
                if x not in region:
                    region.add(x)
                    waiting += [y for y in blocks[x].after if y != meet[k]]
            yield k, region


def _meeting(blocks: Mapping[str, Block]) -> dict[str, str]:
    """Of every block, the first one that all ways from it to the end lead through."""
    order = _backwards(blocks)
    place = {b: k for k, b in enumerate(order)}
    meet = {"end": "end"}
    changed = True
    while changed:
        changed = False
        for b in order[1:]:
            known = [x for x in blocks[b].after if x in meet]
            if not known:
                continue
            new = known[0]
            for x in known[1:]:
                a = x
                while a != new:
                    while place[a] > place[new]:
                        a = meet[a]
                    while place[new] > place[a]:
                        new = meet[new]
            if meet.get(b) != new:
                meet[b], changed = new, True
    return {b: meet.get(b, "end") for b in blocks}


def _backwards(blocks: Mapping[str, Block]) -> list[str]:
    """From the end, every block behind those that follow on it as far as loops allow."""
    ahead: dict[str, list[str]] = {b: [] for b in blocks}
    for b in blocks.values():
        for x in b.after:
            ahead[x].append(b.name)
    order: list[str] = []
    seen = {"end"}
    stack: list[tuple[str, Iterator[str]]] = [("end", iter(ahead["end"]))]
    while stack:
        b, rest = stack[-1]
        x = next((y for y in rest if y not in seen), None)
        if x is None:
            order.append(b)
            stack.pop()
        else:
            seen.add(x)
            stack.append((x, iter(ahead[x])))
    return order[::-1]
