"""Instructions by the line of Kernel IR that they come from."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cpu.assemble import assembly
from tilewright.compiler.codegen.cpu.lower import module_text
from tilewright.compiler.codegen.cpu.origins import (
    Lines,
    assembly_by_line,
    numbered_text,
    phase_starts,
    statement_lines,
)
from tilewright.compiler.inspect.views import Compilation
from tilewright.compiler.kernels.ir import For, If, Store, statements
from tilewright.compiler.kernels.printer import kernel_text

NOT_CODE = re.compile(r"\s*[.#]|\S*:")


def compilation() -> Compilation:
    """Kernels of many templates."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    g = tw.Graph()
    x = g.input("x", (1, 16, 14, 14))
    h = g.relu(g.conv(x, weights(32, 16, 3, 3), weights(32), pads=1))
    h = g.conv(g.relu(g.conv(h, weights(20, 32, 1, 1))), weights(20, 1, 3, 3), group=20)
    h = g.reshape(g.max_pool(h, kernel_shape=(3, 3)), shape=(1, 20, 100))
    h = g.cum_sum(g.softmax(h @ weights(100, 30), axis=-1), axis=1)
    g.output(g.sort(h, axis=1)[0] if hasattr(g, "sort") else h, "y")
    return tw.compile(g, threads=2)._compilation


C = compilation()
KERNELS = [pytest.param(x.kernel, id=f"{k}-{x.kernel.template}") for k, x in enumerate(C.launches)]


def instructions(listing: str) -> list[str]:
    lines = (line.partition("#")[0].split() for line in listing.splitlines()
             if line.strip() and not NOT_CODE.match(line))  # fmt: skip
    return [" ".join(line) for line in lines]


@pytest.mark.parametrize("kernel", KERNELS)
def test_line_numbers_change_no_instruction(kernel: object) -> None:
    plain = assembly(module_text(kernel, C.target.arithmetic), C.target)
    numbered = assembly(numbered_text(kernel, C.target.arithmetic), C.target)
    assert instructions(numbered) == instructions(plain)
    by_line = assembly_by_line(numbered)
    assert sum(map(len, by_line.values())) == len(instructions(plain))
    assert len(by_line.get(0, ())) < 0.2 * len(instructions(plain)) + 40


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_statement_stands_on_its_line(kernel: object) -> None:
    text = ["", *kernel_text(kernel).splitlines()]
    found = list(statement_lines(kernel))
    assert [s for _, s in found] == [s for p in kernel.phases for s in statements(p.body)]
    for at, s in found:
        line = text[at].strip()
        assert line.startswith("for ") == isinstance(s, For), (at, line)
        assert line.startswith("if ") == isinstance(s, If), (at, line)
        assert not isinstance(s, Store) or line.startswith(f"{s.buffer.name}["), (at, line)
    assert all(text[at].strip().startswith("parallel ") for at in phase_starts(kernel))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_store_is_made_of_instructions_that_write(kernel: object) -> None:
    by_line = assembly_by_line(assembly(numbered_text(kernel, C.target.arithmetic), C.target))
    stores = [at for at, s in statement_lines(kernel) if isinstance(s, Store)]
    assert any(by_line.get(at) for at in stores)
    for phase, start in zip(kernel.phases, phase_starts(kernel), strict=True):
        lines = Lines(phase, start)
        assert lines.of(phase.body[0], start) == start + 1
