"""What a search believes of the candidates that it has not run.

A cost model ranks candidates, but what it is wrong about it is wrong about for all that are alike:
if one candidate is 20 % slower than estimated, so are probably those that differ in one field. So
the logarithm of time over estimate is taken for a Gaussian process over configs: its covariance
falls with the distance of two configs, with a part of its own for every template and for the unit
of the estimates (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, chapter
2). What to run next is what has the largest expected improvement (Jones, Schonlau and Welch,
Journal of Global Optimization 13, 1998): near what was fast, or far from all that is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ..alike import unlikeness
from ..outcome import Measurement
from ..task import Candidate, Task

Array = npt.NDArray[np.float64]

CONFIG: Final = 0.12
"""Deviation of log(time / estimate) between configs of one template that are far apart."""
TEMPLATE: Final = 0.05
"""The same between templates."""
UNIT: Final = 10.0
"""Of the unit of estimates: nothing is known of it."""
REACH: Final = 3.0
"""Fields by which configs differ that know little of each other."""
PRIOR: Final = 4.0
"""Measurements that these deviations count as, against how far estimates turn out to be off."""
NOISE: Final = 0.01
"""Deviation of a measured time, at least."""
TINY: Final = 1e-7
"""Added to variances, which rounding may have made negative."""
DRAWS: Final = 256
"""Of all times together, to see what the best of them would save."""


class Belief:
    """Of one task. `given` says what measurements say of all places."""

    def __init__(self, task: Task) -> None:
        self._prior = np.array([math.log(max(e, 1e-300)) for e in task.estimates]
                               or [0.0] * len(task.space))  # fmt: skip
        self._covariance = covariance(task.space)

    def given(self, measured: Mapping[int, Measurement]) -> Posterior:
        """What is believed after measurements by place."""
        at = list(measured)
        times = np.array([math.log(measured[k].seconds) for k in at])
        noise = np.array([_noise(measured[k]) for k in at])
        return Posterior(self._prior, self._covariance, at, times, noise)


class Posterior:
    """Means and covariances of the logarithms of all places' seconds."""

    def __init__(
        self, prior: Array, covariance: Array, at: Sequence[int], times: Array, noise: Array
    ) -> None:
        self._noise = noise.mean() if len(at) else NOISE
        self._prior = prior
        self.mean, self.covariance = prior, covariance
        if at:
            shift = float(np.mean(times - prior[at]))  # of the unit: only differences matter
            seen = covariance[np.ix_(at, at)] + np.diag(noise**2)
            weights = np.linalg.solve(seen, covariance[at])
            off = times - prior[at] - shift
            self.mean = prior + shift + weights.T @ off
            surprise = float(off @ np.linalg.solve(seen, off))  # 1 per measurement, as foreseen
            scale = (PRIOR + surprise) / (PRIOR + len(at) - 1)
            self.covariance = (covariance - weights.T @ covariance[at]) * scale

    def improvements(self, places: Sequence[int], best: float) -> Array:
        """The share of `best`, a logarithm of seconds, that each place is expected to save."""
        spread = np.sqrt(np.maximum(np.diag(self.covariance)[places], 1e-12))
        return _improvement((best - self.mean[places]) / spread, spread)

    def gain(self, places: Sequence[int], best: float) -> float:
        """The share of `best` that the best of the places is expected to save."""
        chosen = self.covariance[np.ix_(places, places)]
        root = np.linalg.cholesky(chosen + np.diag(np.full(len(places), TINY)))
        drawn = np.random.default_rng(0).standard_normal((DRAWS, len(places))) @ root.T
        fastest = (self.mean[places] + drawn).min(axis=1)
        return float(np.mean(-np.expm1(np.minimum(fastest - best, 0.0))))

    def supposing(self, place: int) -> Posterior:
        """The same, if the place turned out to be what is expected of it."""
        noise = np.array([self._noise])
        column = self.covariance[place]
        out = Posterior(self.mean, self.covariance, [], noise, noise)
        out.covariance = self.covariance - np.outer(column, column) / (column[place] + noise**2)
        return out


def covariance(space: Sequence[Candidate]) -> Array:
    """Between the logarithms of the candidates' times over their estimates."""
    out = np.full((len(space), len(space)), UNIT**2)
    groups: dict[tuple[str, int], list[int]] = {}
    for k, c in enumerate(space):
        groups.setdefault((c.template, c.version), []).append(k)
    for places in groups.values():
        apart = unlikeness([space[k].config for k in places])
        out[np.ix_(places, places)] += TEMPLATE**2 + CONFIG**2 * np.exp(-apart / REACH)
    return out


def _noise(m: Measurement) -> float:
    """The deviation of a time's logarithm that its interval stands for."""
    return max(NOISE, (m.high - m.low) / (4 * m.seconds))


def _improvement(z: Array, spread: Array) -> Array:
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z])
    out: Array = spread * (z * below + density)
    return out
