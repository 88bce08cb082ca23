"""Just enough SVG to draw a diagram: elements as text, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def number(x: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{x:.1f}".rstrip("0").rstrip(".")


def element(tag: str, content: str = "", **attributes: object) -> str:
    """`<tag name="value">content</tag>`; content is markup. Underscores in names become hyphens,
    one at the end is dropped (`class_`), floats are coordinates."""
    text = "".join(
        f' {name.rstrip("_").replace("_", "-")}="'
        f'{number(value) if isinstance(value, float) else escape(str(value))}"'
        for name, value in attributes.items()
    )  # fmt: skip
    return f"<{tag}{text}>{content}</{tag}>" if content else f"<{tag}{text}/>"


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> str:
    return element("line", "", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def label(x: float, y: float, words: str, **attributes: object) -> str:
    """Words at a place; their baseline's start unless `text_anchor` says otherwise."""
    return element("text", escape(words, quote=False), x=x, y=y, **attributes)


def circle(x: float, y: float, radius: float, title: str, **attributes: object) -> str:
    """A disk that shows `title` under the pointer."""
    inner = element("title", escape(title, quote=False))
    return element("circle", inner, cx=x, cy=y, r=radius, **attributes)


def box(
    x: float, y: float, width: float, height: float, title: str, **attributes: object
) -> str:  # fmt: skip
    """A rectangle from its upper left corner that shows `title` under the pointer."""
    inner = element("title", escape(title, quote=False))
    return element("rect", inner, x=x, y=y, width=width, height=height, **attributes)


def document(width: int, height: int, style: str, parts: Iterable[str]) -> str:
    """The whole file. style: CSS, not escaped."""
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif">\n'
            f"<style>{style}</style>\n{body}\n</svg>\n")  # fmt: skip
