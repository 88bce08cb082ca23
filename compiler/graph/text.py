"""The text form of a graph: a printer and its inverse.

    graph net(%x: f32[1,3,8,8]) -> (%y: f32[1,4,4,4]) {
      const @w: f32[4,3,3,3] = sha256:5be0c2a4d1f6e380
      const @b: f32[4] = [0.5, -1.0, 0.0, 2.0]
      group 0 {
        %c = conv(%x, @w, @b) {strides=[2, 2], pads=[1, 1, 1, 1]} : f32[1,4,4,4]  # model: Conv_0
        %y = relu(%c)                                             : f32[1,4,4,4]  # model: Relu_1
      }
    }

`%` marks inputs and intermediates; `@` marks what lives as long as the program: `const`, `param`
and `state`. `_` is an absent input. Attributes that have their default are left out. An array
prints in full up to 16 elements, as `splat(v)` where it repeats one element without storing it, and
else as a hash: its bytes then come from elsewhere when the text is parsed (`textfile.py`). A group
whose ops stand together is a block, otherwise each of its ops says `group=3`. Named dimensions with
known bounds are declared above the graph: `dim batch in 1..8`. A result that lies in another blob's
memory says where: `f32[1,16,8,8]@1/64 in %y+32` are the channels from 32 on of y, which has 64.

A comment `# model: Conv_0 + Relu_1 as both` behind an op names the model nodes it stands for
(`Op.source`) and its own name (`Op.name`; the first of the nodes unless `as` says otherwise). It is
the one comment that is read: it carries where an op came from, never what it computes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Final

import numpy as np

from ...ops.errors import OperatorError
from ...ops.operator import REGISTRY, normalise
from ...ops.types import SymDim, TensorType
from ..text import Scanner, format_type, format_value, quote
from .ir import Array, Blob, Graph, Inside, Op, Role, content_digest

INLINE_ELEMENTS: Final = 16
_HASH: Final = "sha256:"
_LINE: Final = 100
_CALL: Final = 52  # calls are padded to this width, so that types stand below each other

_KEYWORD: Final = {Role.CONSTANT: "const", Role.PARAMETER: "param", Role.STATE: "state"}
_ROLE: Final = {word: role for role, word in _KEYWORD.items()}

# --------------------------------------------------------------------------- printing


def to_text(graph: Graph) -> str:
    """The graph as text that `parse` turns back into an equal graph. Ends with a line end."""
    lines = [*_dims(graph), *_header(graph)]
    for b in graph.blobs.values():
        if b.role in _KEYWORD:
            value = f" = {_array(b)}" if b.is_constant else ""
            name = f"@{quote(b.name)}: {format_type(b.type)}"
            lines.append(f"  {_KEYWORD[b.role]} {name}{value}")
    runs = [(g, list(ops)) for g, ops in groupby(graph.ops, key=lambda op: op.group)]
    starts = [g for g, _ in runs]
    for group, ops in runs:
        if group is None:
            lines += [f"  {format_op(graph, op)}" for op in ops]
        elif starts.count(group) == 1:
            lines.append(f"  group {group} {{")
            lines += [f"    {format_op(graph, op)}" for op in ops]
            lines.append("  }")
        else:
            lines += [f"  {format_op(graph, op, f' group={group}')}" for op in ops]
    lines.append("}\n")
    return "\n".join(lines)


def format_op(graph: Graph, op: Op, marker: str = "") -> str:
    """One op on one line, with its types and where it came from."""
    ins = ", ".join("_" if n is None else _ref(graph, n) for n in op.inputs)
    outs = ", ".join(_ref(graph, n) for n in op.outputs)
    given = ", ".join(f"{quote(k)}={format_value(v)}" for k, v in _shown_attrs(op))
    call = f"{outs} = {op.operator}({ins}){f' {{{given}}}' if given else ''}{marker}"
    types = ", ".join(format_type(graph.type(o)) + _inside(graph, o) for o in op.outputs)
    return f"{call:<{_CALL}} : {types}{_provenance(op)}"


def _inside(graph: Graph, blob: str) -> str:
    inside = graph.blobs[blob].inside
    return "" if inside is None else f" in {_ref(graph, inside.blob)}+{inside.start}"


def _dims(graph: Graph) -> Iterator[str]:
    dims = {
        d.name: d
        for b in graph.blobs.values()
        for d in b.type.shape
        if isinstance(d, SymDim) and d != SymDim(d.name)
    }
    for d in dims.values():
        yield f"dim {quote(d.name)} in {d.lo}..{'' if d.hi is None else d.hi}"


def _header(graph: Graph) -> list[str]:
    ins = [f"{_ref(graph, n)}: {format_type(graph.type(n))}" for n in graph.inputs]
    outs = [f"{_ref(graph, n)}: {format_type(graph.type(n))}" for n in graph.outputs]
    head = f"graph {quote(graph.name)}"
    line = f"{head}({', '.join(ins)}) -> ({', '.join(outs)}) {{"
    if len(line) <= _LINE:
        return [line]
    between = [f"    {x}," for x in ins], [f"    {y}," for y in outs]
    return [f"{head}(", *between[0], ") -> (", *between[1], ") {"]


def _ref(graph: Graph, blob: str) -> str:
    return f"{'@' if graph.blobs[blob].role in _KEYWORD else '%'}{quote(blob)}"


def _shown_attrs(op: Op) -> Iterator[tuple[str, Any]]:
    defaults = REGISTRY[op.operator].attrs if op.operator in REGISTRY else {}
    for k, v in op.attrs:
        default = normalise(defaults[k]) if k in defaults else None
        # repr tells 1 from 1.0 and True
        if k not in defaults or repr(default) != repr(v):
            yield k, v


def _provenance(op: Op) -> str:
    if not op.source and not op.name:
        return ""
    nodes = " + ".join(quote(n, ("as",)) for n in op.source)
    named = op.name == (op.source[0] if op.source else "")
    return f"  # model:{f' {nodes}' if nodes else ''}{'' if named else f' as {quote(op.name)}'}"


def hashed(graph: Graph) -> dict[str, Blob]:
    """The constants whose bytes are not in the text, by their hashes."""
    found = {}
    for b in graph.blobs.values():
        if b.role in _KEYWORD and b.is_constant:
            _, mark, digest = _array(b).partition(_HASH)
            if mark:
                found[digest] = b
    return found


def _array(blob: Blob) -> str:
    x = blob.value
    assert x is not None
    if _is_splat(x):
        one = x.reshape(-1)[:1]
        if _comes_back(one, blob.type):
            return f"splat({_number(one[0])})"
    elif x.size <= INLINE_ELEMENTS and _comes_back(x, blob.type):
        return f"[{', '.join(_number(v) for v in x.reshape(-1))}]"
    return f"{_HASH}{content_digest(x)}"


def _comes_back(x: Array, t: TensorType) -> bool:
    """Whether text keeps every bit: it does not tell one NaN from another."""
    read = [Scanner(_number(v)).value() for v in x.reshape(-1)]
    return _numbers(read, t).tobytes() == x.tobytes()


def _is_splat(x: Array) -> bool:
    return x.size > 0 and x.ndim > 0 and not any(x.strides)


def _number(x: Any) -> str:
    """The shortest text that gives the same element back."""
    value = x.item()
    if isinstance(value, float) and np.isfinite(value):
        short = str(x)
        exact = type(x)(float(short)) == x and ("." in short or "e" in short)
        return short if exact else repr(value)
    return str(value)


def _numbers(values: list[Any], t: TensorType) -> Array:
    """A flat array of the type's elements. Raises ValueError, TypeError or OverflowError."""
    kinds = {"f": (float, int), "b": (bool,)}.get(t.dtype.numpy.kind, (int,))
    for v in values:
        if not isinstance(v, kinds) or (isinstance(v, bool) and t.dtype.kind != "b"):
            raise TypeError(f"{format_value(v)} is no element of {t.dtype}")
    with np.errstate(over="ignore"):
        return np.array(values, t.dtype.numpy)


# --------------------------------------------------------------------------- parsing


def parse(
    text: str,
    constants: Mapping[str, Array] | None = None,
    digests: Mapping[str, str] | None = None,
    by_digest: Mapping[str, Array] | None = None,
) -> Graph:
    """The graph that `to_text` printed, equal in every field.

    constants: the arrays, by blob name, that the text only has hashes of. digests: the
    `content_digest` of those whose caller has found it already. by_digest: arrays by their hash,
    for blobs that `constants` does not name. Raises TextError with
    line, column and the place underlined: on text that does not parse, unknown operators and blobs,
    names defined twice, types other than the operator's own, constants that are missing or have
    another hash. `verify` checks what else makes a graph well formed.
    """
    return _Parser(text, constants or {}, digests or {}, by_digest or {}).graph()


class _Parser(Scanner):
    def __init__(
        self, text: str, constants: Mapping[str, Array], digests: Mapping[str, str],
        by_digest: Mapping[str, Array],
    ) -> None:  # fmt: skip
        super().__init__(text)
        self.constants = constants
        self.digests = digests
        self.by_digest = by_digest
        self.blobs: dict[str, Blob] = {}
        self.ops: list[Op] = []
        self.dims: dict[str, SymDim] = {}

    def graph(self) -> Graph:
        while self.sees("dim"):
            self._dim()
        self.expect("graph")
        name = self.name("the graph's name")
        inputs = []
        self.expect("(", "before the inputs")
        while not self.accept(")"):
            inputs.append(self._typed("%", Role.INPUT).name)
            if not self.sees(")"):
                self.expect(",", "between inputs")
        self.expect("->")
        self.expect("(", "before the outputs")
        # outputs are named before the ops that make them: looked up at the end
        outputs: list[tuple[int, str, int, TensorType]] = []
        while not self.accept(")"):
            start = self.at
            ref = self._ref(look_up=False)
            self.expect(":", "before the type")
            outputs.append((start, ref, self.at, self.type(self.dims)))
            if not self.sees(")"):
                self.expect(",", "between outputs")
        self.expect("{")
        while not self.accept("}"):
            self._statement()
        if not self.done:
            self.fail("text after the end of the graph")
        for start, ref, type_start, t in outputs:
            self._known(start, ref)
            made = self.blobs[ref[1:]].type
            if made != t:
                self.fail(f"the output is {format_type(made)}", type_start)
        return Graph(
            name, tuple(inputs), tuple(ref[1:] for _, ref, _, _ in outputs), tuple(self.ops),
            self.blobs,
        )  # fmt: skip

    def _dim(self) -> None:
        self.expect("dim")
        start = self.at
        name = self.name("a dimension's name")
        if name in self.dims:
            self.fail(f"the dimension {name!r} is declared twice", start)
        self.expect("in")
        lo = self.integer("the lowest size")
        self.expect("..", "between the lowest and the highest size")
        m = self._DIGITS.match(self.text, self.at)
        hi = self.integer("the highest size") if m else None
        self.dims[name] = SymDim(name, lo, hi)

    def _statement(self) -> None:
        for word, role in _ROLE.items():
            if self.accept(word):
                return self._constant(role)
        if self.accept("group"):
            group = self.integer("the group's number")
            self.expect("{")
            while not self.accept("}"):
                self._op(group)
            return None
        return self._op(None)

    # ---------------------------------------------------------------- blobs

    def _sigil(self, sigils: str) -> str:
        if self.done or self.text[self.at] not in sigils:
            wanted = " or ".join(f"{s}name" for s in sigils)
            self.fail(f"expected {wanted}, {'the text ends' if self.done else 'found this'}")
        self.at += 1
        return self.text[self.at - 1]

    def _new(self, sigil: str) -> str:
        """The name of a blob that is defined here."""
        start = self.at
        self._sigil(sigil)
        name = self.name("a blob's name")
        if name in self.blobs:
            self.fail(f"the blob {name!r} is defined twice", start, self.end)
        return name

    def _typed(self, sigil: str, role: Role) -> Blob:
        name = self._new(sigil)
        self.expect(":", "before the type")
        blob = Blob(name, self.type(self.dims), role)
        self.blobs[name] = blob
        return blob

    def _ref(self, look_up: bool = True) -> str:
        """A sigil and the name of a blob."""
        start = self.at
        ref = self._sigil("%@") + self.name("a blob's name")
        if look_up:
            self._known(start, ref)
        return ref

    def _known(self, start: int, ref: str) -> None:
        sigil, name = ref[0], ref[1:]
        if name not in self.blobs:
            near = difflib.get_close_matches(name, self.blobs, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.fail(f"no blob {name!r} is defined before this{hint}", start)
        role = self.blobs[name].role
        if (role in _KEYWORD) != (sigil == "@"):
            right = f"{'@' if role in _KEYWORD else '%'}{quote(name)}"
            self.fail(f"{name!r} has the role {role.value!r}: write {right}", start)

    def _constant(self, role: Role) -> None:
        blob = self._typed("@", role)
        if self.accept("="):
            value = self._value(blob)
            self.blobs[blob.name] = Blob(blob.name, blob.type, role, value)
        elif role is not Role.STATE:
            self.fail("expected '= value' (only state may have none)")

    def _value(self, blob: Blob) -> Array:
        start = self.at
        if not blob.type.is_static:
            self.fail("an array cannot have dimensions that are not bound", start)
        try:
            if self.accept("splat"):
                self.expect("(")
                one = _numbers([self.value()], blob.type)
                self.expect(")")
                return np.broadcast_to(one.reshape(()), blob.type.dims)
            if self.sees("["):
                return self._inline(start, blob.type)
        except (TypeError, ValueError, OverflowError) as e:
            self.fail(f"{e}", start, self.end)
        self.expect("sha256", "or a list of values")
        self.expect(":")
        m = self._TOKEN.match(self.text, self.at)
        digest = m[0] if m else ""
        if blob.name in self.constants:
            x, where = np.asarray(self.constants[blob.name]), "in `constants`"
        elif digest in self.by_digest:
            x, where = np.asarray(self.by_digest[digest]), "under this hash"
        else:
            self.fail(f"the array of {blob.name!r} is not in the text: it has to be given by name "
                      "in `constants`, or under its hash in the .npz file beside the text, which "
                      "`tilewright inspect --out` writes", start)  # fmt: skip
        t = blob.type
        if x.dtype != t.dtype.numpy or x.shape != t.dims:
            self.fail(f"the array given {where} is {x.dtype}{list(x.shape)}", start)
        found = self.digests.get(blob.name) or content_digest(x)
        if found != digest:
            self.fail(f"the array given {where} has the hash {found}")
        self.at += len(digest)
        self.skip()
        return _read_only(x)

    def _inline(self, start: int, t: TensorType) -> Array:
        values = self.values()
        if len(values) != t.size:
            self.fail(f"{t} has {t.size} elements, here are {len(values)}", start, self.end)
        return _read_only(_numbers(list(values), t).reshape(t.dims))

    # ---------------------------------------------------------------- ops

    def _op(self, group: int | None) -> None:
        outs = [(self.at, self._new("%"))]
        while self.accept(","):
            outs.append((self.at, self._new("%")))
        self.expect("=", "after the outputs")
        start = self.at
        operator = self.word("an operator's name")
        if operator not in REGISTRY:
            near = difflib.get_close_matches(operator, REGISTRY, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.fail(f"there is no operator {operator!r}{hint}", start)
        inputs = self._inputs()
        call_end = self.end
        attrs_at = self.at
        attrs = self._attrs()
        try:
            bound = REGISTRY[operator].bind(attrs)
        except OperatorError as e:
            self.fail(str(e), attrs_at if attrs else start, self.end if attrs else call_end)
        if self.accept("group"):
            if group is not None:
                self.fail("this op stands in the block of a group already")
            self.expect("=")
            group = self.integer("the group's number")
        self.expect(":", "before the types")
        types_at = self.at
        types, insides = [self.type(self.dims)], [self._inside()]
        while self.accept(","):
            types.append(self.type(self.dims))
            insides.append(self._inside())
        types_end = self.end
        name, source = self._model(types_end)
        ins = [None if n is None else self.blobs[n].type for n in inputs]
        try:
            inferred = REGISTRY[operator].infer_types(ins, bound)
        except (OperatorError, TypeError, ValueError, ArithmeticError, IndexError) as e:
            self.fail(f"{operator}: {e}", start, call_end)
        if [(t.dtype, t.shape) for t in types] != [(t.dtype, t.shape) for t in inferred]:
            listed = ", ".join(map(format_type, inferred))
            self.fail(f"{operator} gives {listed}", types_at, types_end)
        if len(outs) != len(types):
            self.fail(f"{operator} has {len(types)} outputs, not {len(outs)}", outs[0][0])
        for (at, n), t, inside in zip(outs, types, insides, strict=True):
            if n in self.blobs:
                self.fail(f"the blob {n!r} is defined twice", at)
            self.blobs[n] = Blob(n, t, inside=inside)
        names = tuple(n for _, n in outs)
        self.ops.append(Op(operator, inputs, names, tuple(bound.items()), name, source, group))

    def _inside(self) -> Inside | None:
        """Where a result lies, if in another blob; that may be made by a later op."""
        if not self.accept("in"):
            return None
        blob = self._ref(look_up=False)[1:]
        self.expect("+", "after the blob that it is part of")
        return Inside(blob, self.integer("the index where the part begins"))

    def _inputs(self) -> tuple[str | None, ...]:
        self.expect("(", "before the inputs")
        out: list[str | None] = []
        while not self.accept(")"):
            if out:
                self.expect(",", "between inputs")
            out.append(None if self.accept("_") else self._ref()[1:])
        return tuple(out)

    def _attrs(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if self.accept("{"):
            while not self.accept("}"):
                if out:
                    self.expect(",", "between attributes")
                start = self.at
                name = self.name("an attribute's name")
                if name in out:
                    self.fail(f"the attribute {name!r} is given twice", start)
                self.expect("=", "after the attribute's name")
                out[name] = self.value()
        return out

    def _model(self, end: int) -> tuple[str, tuple[str, ...]]:
        """Op.name and Op.source from the comment behind an op, if there is one."""
        line_end = self.text.find("\n", end)
        line = self.text[: line_end if line_end >= 0 else len(self.text)]
        rest = line[end:].lstrip()
        mark = "# model:"
        if not rest.startswith(mark):
            return "", ()
        s = Scanner(line)
        s.at = len(line) - len(rest) + len(mark)
        s.skip()
        source: list[str] = []
        while not s.done and not s.sees("as"):
            source.append(s.name("the name of a model node"))
            if not s.accept("+"):
                break
        name = s.name("the op's name") if s.accept("as") else source[0] if source else ""
        if not s.done:
            s.fail("expected node names with '+' between, then perhaps 'as name'")
        return name, tuple(source)


def _read_only(x: Array) -> Array:
    view = x.view()
    view.flags.writeable = False
    return view
