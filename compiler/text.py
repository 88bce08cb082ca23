"""What printers and parsers share: names, values, tensor types, sizes, tables, a scanner.

A name that is not `[A-Za-z_][A-Za-z0-9_.]*` prints as a JSON string, so that any name a model comes
with survives: `%conv1`, `%"a b"`. Values print as Python writes them, except that tuples take
brackets and strings double quotes: `[1, 2]`, `1e-05`, `-inf`, `True`, `None`, `"NCHW"`, `f32`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NoReturn

from ..ops.types import DTYPES, Dim, DType, Layout, SymDim, TensorType
from .errors import TextError

_BARE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_WORDS: Final = {"True": True, "False": False, "None": None, "inf": math.inf, "nan": math.nan}

# --------------------------------------------------------------------------- names and values


def quote(name: str, reserved: Collection[str] = ()) -> str:
    """A name as it stands in text: bare where it can be, a JSON string otherwise."""
    return name if _BARE.fullmatch(name) and name not in reserved else json.dumps(name)


def format_value(value: Any) -> str:
    """An attribute value as text that `Scanner.value` reads back. Raises TypeError for values that
    attributes cannot hold (see `ops.operator.normalise`)."""
    if value is None or isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, DType):
        return value.name
    raise TypeError(f"a {type(value).__name__} cannot be the value of an attribute: {value!r}")


def format_type(t: TensorType) -> str:
    """`f32[1,64,N,56]@1x16`; differs from `str(t)` in that odd names of dimensions are quoted."""
    dims = ",".join(quote(d.name) if isinstance(d, SymDim) else str(d) for d in t.shape)
    return f"{t.dtype}[{dims}]{t.layout}"


# --------------------------------------------------------------------------- for people


def printable(name: str) -> str:
    """A name as it is, but that nothing in it can break a line or steer a terminal: names come from
    models."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def nearest(name: str, known: Iterable[str]) -> str:
    """What was perhaps meant by a wrong name, to stand in an error: "; did you mean 'conv1'?" with
    up to three of the known names, "" where none is like it."""
    near = difflib.get_close_matches(name, dict.fromkeys(known), 3, 0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def human_bytes(count: int) -> str:
    """`640 B`, `3.1 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_time(seconds: float) -> str:
    """`2.9 ms`, `1.4 s`, three digits or so."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{_three_digits(seconds * 1e9)} ns"


def _three_digits(x: float) -> str:
    return f"{x:.2f}" if abs(x) < 10 else f"{x:.1f}" if abs(x) < 100 else f"{x:.0f}"


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = (), right: str = "") -> str:
    """Columns aligned with two spaces between. right: one character per column, "r" to align it to
    the right, anything else to the left; columns past its end go left. No trailing blanks."""
    lines = [[str(c) for c in row] for row in rows]
    if header:
        lines.insert(0, [str(c) for c in header])
    width: dict[int, int] = {}
    for line in lines:
        for k, cell in enumerate(line):
            width[k] = max(width.get(k, 0), len(cell))
    out = []
    for line in lines:
        cells = [
            cell.rjust(width[k]) if right[k : k + 1] == "r" else cell.ljust(width[k])
            for k, cell in enumerate(line)
        ]
        out.append("  ".join(cells).rstrip())
    return "\n".join(out)


# --------------------------------------------------------------------------- reading


class Scanner:
    """Reads text from left to right. Blanks, line ends and `# comments` separate and mean nothing.

    Every method raises TextError, with line, column and the place underlined, on what it does not
    expect.
    """

    _NUMBER: Final = re.compile(
        r"-?(?:(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?|inf\b|nan\b)", re.ASCII
    )
    _STRING: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"')
    _BLANK: Final = re.compile(r"(?:\s|#[^\n]*)*")
    _TOKEN: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"?|[%@]?[\w.]+|->|.', re.DOTALL)
    _DIGITS: Final = re.compile(r"\d+", re.ASCII)
    _BLOCKS: Final = re.compile(r"@(\d{1,3})x(\d{1,9})", re.ASCII)
    _PART: Final = re.compile(r"@(\d{1,3})/(\d{1,18})", re.ASCII)
    _WORD: Final = _BARE

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.end = 0  # of the last token, before blanks and comments
        self.skip()

    def skip(self) -> None:
        """From the end of a token to the next one."""
        self.end = self.at
        self.at = self._BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]

    def fail(self, why: str, start: int | None = None, end: int | None = None) -> NoReturn:
        """Raise TextError about text[start:end], by default the token at hand."""
        start = self.at if start is None else start
        if end is None:
            found = self._TOKEN.match(self.text, start)
            end = found.end() if found else start + 1
        line = self.text.count("\n", 0, start) + 1
        begin = self.text.rfind("\n", 0, start) + 1
        stop = self.text.find("\n", begin)
        stop = len(self.text) if stop < 0 else stop
        shown = self.text[begin:stop].replace("\t", " ").replace("\r", " ")
        column = start - begin
        marks = "^" * max(1, min(end, stop) - start)
        raise TextError(
            f"line {line}, column {column + 1}: {why}\n  | {shown}\n  | {' ' * column}{marks}"
        )

    @property
    def done(self) -> bool:
        return self.at >= len(self.text)

    def sees(self, token: str) -> bool:
        """Whether `token` comes next, as a whole word where it is one."""
        if not self.text.startswith(token, self.at):
            return False
        after = self.text[self.at + len(token) : self.at + len(token) + 1]
        return not (token[-1].isalnum() and (after.isalnum() or after in ("_", ".")))

    def accept(self, token: str) -> bool:
        if not self.sees(token):
            return False
        self.at += len(token)
        self.skip()
        return True

    def expect(self, token: str, where: str = "") -> None:
        if not self.accept(token):
            found = "the text ends" if self.done else "found something else"
            self.fail(f"expected {token!r}{f' {where}' if where else ''}, {found}")

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        m = pattern.match(self.text, self.at)
        if m is None:
            return None
        self.at = m.end()
        self.skip()
        return m[0]

    def word(self, what: str) -> str:
        """A bare name."""
        found = self._take(self._WORD)
        if found is None:
            self.fail(f"expected {what}")
        return found

    def string(self) -> str:
        start = self.at
        found = self._take(self._STRING)
        if found is None:
            self.fail("expected a string in double quotes, on one line")
        try:
            value = json.loads(found)
        except ValueError:
            self.fail("this string has an escape or a character that JSON does not allow", start)
        return str(value)

    def name(self, what: str) -> str:
        """A name, bare or quoted."""
        return self.string() if self.sees('"') else self.word(what)

    def integer(self, what: str) -> int:
        """Digits without a sign."""
        start = self.at
        found = self._take(self._DIGITS)
        if found is None or len(found) > 18:
            self.fail(f"expected {what}", start)
        return int(found)

    def number(self) -> int | float:
        start = self.at
        found = self._take(self._NUMBER)
        if found is None:
            self.fail("expected a number")
        try:
            return float(found) if re.search(r"[.einE]", found) else int(found)
        except ValueError:
            self.fail("this number has too many digits", start)

    def value(self, depth: int = 0) -> Any:
        """What `format_value` printed; lists come back as tuples."""
        if self.sees("["):
            if depth > 32:
                self.fail("lists are nested too deeply")
            return self.values(depth + 1)
        if self.sees('"'):
            return self.string()
        m = self._WORD.match(self.text, self.at)
        if m is not None:
            found: dict[str, Any] = {**_WORDS, **DTYPES}
            if m[0] not in found:
                self.fail(f"{m[0]!r} is no value; strings stand in double quotes")
            self.word("a value")
            return found[m[0]]
        return self.number()

    def values(self, depth: int = 1) -> tuple[Any, ...]:
        """`[a, b, ...]`"""
        self.expect("[")
        out: list[Any] = []
        while not self.accept("]"):
            if out:
                self.expect(",", "between values")
            out.append(self.value(depth))
        return tuple(out)

    def type(self, symbols: dict[str, SymDim] | None = None) -> TensorType:
        """What `format_type` printed. symbols: the bounds of named dimensions."""
        start = self.at
        dtype = self.word("a type such as f32[1,3]")
        if dtype not in DTYPES:
            self.fail(f"no element type {dtype!r}; known are {', '.join(DTYPES)}", start)
        self.expect("[", "after the element type")
        shape: list[Dim] = []
        while not self.accept("]"):
            if shape:
                self.expect(",", "between dimensions")
            if self._DIGITS.match(self.text, self.at):
                shape.append(self.integer("a dimension of at most 18 digits"))
            else:
                dim = self.name("a dimension: an integer or a name")
                shape.append((symbols or {}).get(dim, SymDim(dim)))
        blocks, part = self._layout(self._BLOCKS, shape), self._layout(self._PART, shape)
        layout = Layout(*blocks, *part)
        return TensorType(DTYPES[dtype], tuple(shape), layout)

    def _layout(self, pattern: re.Pattern[str], shape: Sequence[Dim]) -> tuple[int, int]:
        """The two numbers of a piece of a layout, an axis and an extent; zeros if it is absent."""
        m = pattern.match(self.text, self.at)
        if m is None:
            return 0, 0
        if int(m[1]) >= len(shape) or int(m[2]) == 0:
            self.fail(f"the layout {m[0]} does not fit {len(shape)} dimensions", end=m.end())
        self.at = m.end()
        self.skip()
        return int(m[1]), int(m[2])
