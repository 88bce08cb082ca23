"""Scripts that build and run one kernel by itself: what is in them, and what they call.

A script holds a problem and a candidate, which is all that decides a kernel, as literals. Names of
the model stand in it for people only, as literals as well: text of a model is never code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...autotune.task import Candidate
from ..codegen.cpu.target import host
from ..errors import LoweringError, ModelError
from ..kernels.ir import Launch
from ..kernels.printer import kernel_digest
from ..options import VERSION
from ..store import Store
from ..text import printable
from .alone import difference, filled, run_alone
from .problem import Problem, parse
from .reference import Reference

_SCRIPT: Final = '''\
"""One kernel of a compiled model: built, run by itself, compared with the float64 reference.

Written by Tilewright {version}. It exits with 0 if the result is right, with 1 if it is not.
"""

import sys
from pathlib import Path

from {module} import run

NODES = {nodes}
"""Of the model; for people."""

KERNEL = {kernel}
"""The digest of the kernel's text where this was written."""

CANDIDATE = {candidate}

PROBLEM = {problem}

DATA = {data}
{source}
if __name__ == "__main__":
    sys.exit(run("\\n".join(PROBLEM), CANDIDATE, KERNEL, {rest}))
'''
_SOURCE: Final = '''
SOURCE = """\\
{text}"""
"""The kernel in Numba CUDA. This is what runs, so it may be changed."""
'''


def script(
    problem: Problem, candidate: Candidate, kernel: str, nodes: Sequence[str], data: str = "",
    source: str = "", module: str = __name__,
) -> str:  # fmt: skip
    """The text of a script. kernel: the digest of the kernel's text. data: the name of an .npz
    file beside it with the arrays to compute with, under the problem's names of blobs; made-up ones
    otherwise. source: of a kernel for GPUs. module: where the `run` is that takes all this."""
    if '"""' in source or "\\" in source:
        raise LoweringError("a kernel's source has no quotes and no backslashes")
    made = {"template": candidate.template, "version": candidate.version,
            "config": dict(candidate.config)}  # fmt: skip
    return _SCRIPT.format(
        version=VERSION,
        nodes=ascii(list(nodes)),
        kernel=ascii(kernel),
        candidate=ascii(made),
        problem=_lines(problem.text),
        data=f"Path(__file__).with_name({data!a})" if data else "None",
        module=module,
        source=_SOURCE.format(text=source) if source else "",
        rest="SOURCE, DATA" if source else "DATA",
    )


def _lines(text: str) -> str:
    """Text as a list of its lines, one literal on each line."""
    return "[\n" + "".join(f"    {line!a},\n" for line in text.split("\n")) + "]"


def run(text: str, made: Mapping[str, Any], kernel: str, data: Path | None = None) -> int:
    """What a script does: 0 if the kernel's results are right, 1 if not.

    Raises TextError, LoweringError, ModelError where the script's parts make no sense.
    """
    problem, launch = opened(text, made, kernel, data)
    return told(problem, launch, run_alone(problem, launch, host(), Store()))


def opened(
    text: str, made: Mapping[str, Any], kernel: str, data: Path | None
) -> tuple[Problem, Launch]:
    """The problem and the kernel of a script, which it tells of. Raises as `run`."""
    problem = parse(text)
    if data is not None:
        problem = filled(problem, _read(problem, data))
    candidate = Candidate(str(made["template"]), int(made["version"]), dict(made["config"]))
    launch = problem.instantiate(candidate)
    found = kernel_digest(launch.kernel)
    print(f"{printable(str(candidate))} for {problem.label}")
    if found != kernel:
        print(f"its code is {found}, not {kernel} as where this was written: another version of "
              "the template, or another machine")  # fmt: skip
    return problem, launch


def told(problem: Problem, launch: Launch, results: Mapping[str, Any]) -> int:
    """Says whether results are right: 0 if so, 1 if not."""
    wrong = difference(Reference(problem), launch, results)
    print(f"wrong: {wrong}" if wrong else "right: within the bound of its arithmetic")
    return 1 if wrong else 0


def _read(problem: Problem, data: Path) -> dict[str, Any]:
    try:
        with np.load(data, allow_pickle=False) as arrays:
            found = {n: arrays[n] for n in arrays.files}
    except (OSError, ValueError) as e:
        raise ModelError(f"the arrays beside the script, {data.name}, cannot be read: {e}") from e
    for n in problem.described.inputs:
        t = problem.described.type(n)
        if n not in found or found[n].shape != t.dims or found[n].dtype != t.dtype.numpy:
            raise ModelError(f"{data.name} has no array {n} of the type {t}")
    return found
