"""Whatever a tuner picks is right: bit-identical where that is promised, else within its bound.

Machine code of candidates, run on poisoned memory, against the references in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tilewright.autotune.task import Candidate
from tilewright.compiler.api.compile import analyse
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.inspect.views import Compilation
from tilewright.compiler.runtime.objects import load
from tilewright.compiler.store import Store
from tilewright.compiler.tuning.candidate import Constants, Contender, Sets
from tilewright.compiler.tuning.problem import Problem
from tilewright.compiler.tuning.reference import Reference
from tilewright.compiler.tuning.tasks import tasks_of

from ...models.test_architectures import models
from .nets import NETS, analysed, device

Array = np.ndarray[Any, Any]

NUMERICS = ("reproducible", "standard")
MODELS = ("squeezenet", "shufflenet", "mobilenet", "transformer", "gru_sent", "resnet50")
SOME = 3
"""Candidates of each template, and of each tile of Winograd's algorithm, in quick tests."""


def check_space(problem: Problem, chosen: Sequence[Candidate]) -> None:
    """Run the default, then all that are chosen."""
    reference = Reference(problem)
    sets, constants = Sets(problem.graph, reference.feeds), Constants(problem.graph)
    store = Store()
    want: dict[str, Array] = {}
    for candidate in (problem.default(), *chosen):
        launch = problem.instantiate(candidate)
        objects = load((launch.kernel,), host(), store)
        contender = Contender(problem, launch, objects, constants.of(launch), sets)
        address = contender.address(1)
        sets.poison(0)
        contender.run(address)
        results = {n: np.array(y) for n, y in contender.computed().items()}
        reference.check(launch, results)
        want = want or results
        if problem.numerics == "reproducible":
            for name, y in results.items():
                np.testing.assert_array_equal(_bits(y), _bits(want[name]), str(candidate))
        constants.forget()


def _bits(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def spread(space: Sequence[Candidate]) -> list[Candidate]:
    """A few candidates of every kind."""
    kinds: dict[object, list[Candidate]] = {}
    for c in space:
        kinds.setdefault((c.template, c.config.get("m")), []).append(c)
    return [c for found in kinds.values() for c in found[:: max(1, len(found) // SOME)]]


def spaces(c: Compilation) -> list[tuple[Problem, tuple[Candidate, ...]]]:
    return [(use.problem, use.task.space) for use in tasks_of(c, device(c))]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("numerics", NUMERICS)
def test_some_candidates(name: str, numerics: str) -> None:
    for problem, space in spaces(analysed(name, numerics)):
        check_space(problem, spread(space))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_candidate(name: str, numerics: str, threads: int) -> None:
    for problem, space in spaces(analysed(name, numerics, threads)):
        check_space(problem, space)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("numerics", NUMERICS)
def test_every_candidate_of_a_model(name: str, numerics: str) -> None:
    c = analyse(models().path(name), numerics=numerics, threads=2, tune=False)
    for problem, space in spaces(c):
        check_space(problem, space)


def test_candidates_that_add_otherwise_are_told_apart() -> None:
    """Winograd's results are not those of a direct sum: the comparison of bits can fail."""
    problem, space = next(
        (p, s) for p, s in spaces(analysed("residual")) if s[0].template == "winograd"
    )
    claimed = Problem(problem.described, problem.constants, problem.device, "reproducible", ())
    claimed.__dict__["_templates"] = problem._templates
    with pytest.raises(AssertionError, match="direct_conv"):
        check_space(claimed, [c for c in space if c.template == "direct_conv"][:1])
