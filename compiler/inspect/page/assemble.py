"""The page: one file that needs nothing else, neither network nor server.

What a model calls its nodes is anybody's text. It comes as JSON in script elements of a type that
browsers do not run, with every character escaped that could end one; the page's own script puts it
into the document as text, never as markup. A content security policy names that one script by its
hash, so that no other would run even so, and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path
from typing import Any, Final

from ...text import printable
from .facts import Report, facts, texts

SCRIPTS: Final = ("base.js", "code.js", "details.js", "kernels.js", "graph.js", "canvas.js",
                  "memory.js", "stages.js", "main.js")  # fmt: skip
"""One module together; main.js comes last and starts it."""

_SLOT: Final = re.compile(r"\{\{(\w+)\}\}")


def page(report: Report) -> str:
    """The report as the text of an HTML file."""
    script = "\n".join(map(_read, SCRIPTS))
    style = _read("page.css")
    slots = {
        "policy": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
                  "img-src data:; base-uri 'none'; form-action 'none'",
        "title": escape(printable(report.name)),
        "style": style,
        "facts": script_json(facts(report)),
        "texts": script_json(texts(report)),
        "script": script,
    }  # fmt: skip
    return _SLOT.sub(lambda slot: slots[slot[1]], _read("page.html"))


def script_json(value: Any) -> str:
    """JSON for the inside of a script element: no `<`, `>` or `&`, and nothing but ASCII."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for character in "<>&":  # only in strings, where JSON has this other way to write them
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names a script or style by what it holds."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
