"""That what the simulator takes for an exchange between lanes is what LLVM is given."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tilewright.compiler.codegen.cuda.library import definition

from .simulated_memory import Block, LocalArray
from .simulated_tensor_cores import TENSOR_CORES

LANES = np.arange(32)


def run(text: str, registers: Any, first: int) -> None:
    """The straight instructions of a function on all lanes at once. registers: [lane, register]."""
    values: dict[str, Any] = {"%first": first}

    def of(word: str) -> Any:
        return values[word] if word.startswith("%") else np.full(32, int(word))

    for line in text.splitlines()[1:-2]:
        to, _, what = line.strip().rpartition(" = ")
        words = re.findall(r"[%@]?[\w.]+|-1", what)
        if words[0] == "getelementptr":
            made: Any = of(words[-1]) if words[-1].startswith("%") else int(words[-1])
        elif words[0] == "load":
            made = registers[:, of(words[-1])]
        elif words[0] == "store":
            registers[:, of(words[-1])] = of(words[2])
            continue
        elif words[0] == "add":
            made = of(words[2]) + int(words[3])
        elif words[0] == "bitcast":
            made = of(words[2])
        elif words[0] == "and":
            made = of(words[2]) & int(words[3])
        elif words[0] == "icmp":
            made = of(words[3]) != int(words[4])
        elif words[0] == "select":
            made = np.where(of(words[2]), of(words[4]), of(words[6]))
        elif "laneid" in what:
            made = LANES
        else:
            assert "shfl.sync.bfly" in what and words[4] == "-1", what
            made = of(words[6])[LANES ^ int(words[8])]
        values[to] = made


def test_columns_turn_as_the_simulator_has_it() -> None:
    rng = np.random.default_rng(2)
    held = rng.integers(0, 1 << 20, (32, 40)).astype(np.int32)
    arrays = [LocalArray(40, np.int32) for _ in LANES]
    for array, row in zip(arrays, held, strict=True):
        array.write(0, row)
    TENSOR_CORES["turn_columns"].together(Block(), range(32), [(a, 18) for a in arrays])
    text, _ = definition("tw.turn_columns.i32")
    made = held.copy()
    run(text, made, 18)
    np.testing.assert_array_equal(made, np.stack([a.array for a in arrays]))
    columns = [[8 * t + 2 * s + e for s in range(4) for e in range(2)] for t in range(4)]
    for lane in (0, 5, 31):  # where column c of a row was held: fragment, lane and register of it
        for at, c in enumerate(columns[lane % 4]):
            source = lane // 4 * 4 + c % 8 // 2
            assert made[lane, 18 + at // 2 * 4 + at % 2] == held[source, 18 + c // 8 * 4 + c % 2]
