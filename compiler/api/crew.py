"""Who runs candidates: this machine, or the workers of a farm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...autotune.errors import TunerError
from ...autotune.farm import Farm
from ...autotune.runner import Runner
from ..codegen.cpu.target import CpuTarget
from ..errors import OptionError
from ..tuning import farmhand
from ..tuning.fingerprint import fingerprint
from ..tuning.local import local_runner


@dataclass(frozen=True, slots=True)
class Crew:
    """Runners, and the devices that they are: tasks are tuned for each of them. left_out: who does
    not take part, and why."""

    runners: Sequence[Runner]
    devices: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    close: Callable[[], None] = lambda: None


def local_crew(target: CpuTarget) -> Crew:
    """Worker processes of this machine."""
    return Crew((local_runner(),), (fingerprint(target),))


def farm_crew(address: str, target: CpuTarget) -> Crew:
    """The workers of a cluster that can run what is compiled for `target`.

    Raises OptionError when there is no such cluster, or none of its workers can.
    """
    try:
        farm = Farm(address, farmhand.measure, farmhand.describe)
    except TunerError as e:
        raise OptionError(f"farm={address!r}: {e}") from e
    runners: list[Runner] = []
    devices: dict[str, None] = {}
    left_out = []
    for member, found in farm.members().items():
        why = farmhand.objection(found, target)
        if why is not None or isinstance(found, str):
            left_out.append(f"{member} takes no part: {why}")
            continue
        devices[found["device"]] = None
        runners.append(farm.runner(member, found["device"]))
    if not runners:
        farm.close()
        reasons = "; ".join(left_out) or "it has none"
        raise OptionError(f"farm={address!r}: no worker can run candidates ({reasons})")
    return Crew(runners, tuple(devices), tuple(left_out), farm.close)
