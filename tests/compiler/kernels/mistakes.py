"""Mistakes seeded into the source of a GPU kernel, each of which has to be caught."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest

from tilewright.compiler.codegen.cuda.source import Source

Mistakes = Sequence[tuple[str, str]]
"""What to look for, as a regular expression, and what to put there."""


def mutants(source: Source, mistakes: Mistakes) -> list[tuple[str, Source]]:
    """The source with one mistake, at every place where one fits."""
    found = []
    for pattern, replacement in mistakes:
        for m in re.finditer(pattern, source.text):
            text = source.text[: m.start()] + m.expand(replacement) + source.text[m.end() :]
            if text != source.text:
                found.append((f"{pattern} at {m.start()}: {m[0]!r}", Source(text, source.entries)))
    return found


def assert_caught(
    source: Source, mistakes: Mistakes, right: Callable[[Source], bool], least: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Fails where a mutant is `right`, the source is not, or there are fewer than `least`."""
    assert right(source)
    tried = mutants(source, mistakes)
    survivors = [what for what, m in tried if right(m)]
    with capsys.disabled():
        print(f" {len(tried) - len(survivors)} of {len(tried)} mistakes caught", end="")
    assert len(tried) >= least
    assert not survivors, "\n".join(survivors)
