"""Who runs candidates: this machine, or the workers of a farm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...autotune.errors import TunerError
from ...autotune.farm import Farm
from ...autotune.runner import Runner
from ..codegen.cpu.target import CpuTarget
from ..codegen.cuda.target import CudaTarget
from ..errors import OptionError
from ..kernels.device import Device
from ..tuning import farmhand
from ..tuning.fingerprint import fingerprint, label, same_model
from ..tuning.local import gpu_runner, local_runner


@dataclass(frozen=True, slots=True)
class Crew:
    """Runners, and the devices that they are: tasks are tuned for each of them. warnings: such as
    who does not take part, and why."""

    runners: Sequence[Runner]
    devices: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    close: Callable[[], None] = lambda: None


def local_crew(target: CpuTarget | CudaTarget, device: Device) -> Crew:
    """Worker processes of this machine."""
    if isinstance(target, CudaTarget):
        from .gpu_devices import place_of

        number = target.device or 0
        return Crew((gpu_runner(number),), (place_of(number),))
    return Crew((local_runner(),), (fingerprint(target),))


def farm_crew(address: str, target: CpuTarget, device: Device) -> Crew:
    """The workers of a cluster that can run what is compiled for `target`, used as `device`.

    Raises OptionError when there is no such cluster, or none of its workers can.
    """
    try:
        farm = Farm(address, farmhand.measure, farmhand.describe)
    except TunerError as e:
        raise OptionError(f"farm={address!r}: {e}") from e
    runners: list[Runner] = []
    devices: dict[str, None] = {}
    warnings = []
    for member, found in farm.members().items():
        why = farmhand.objection(found, target, device)
        if why is not None or isinstance(found, str):
            warnings.append(f"{member} takes no part: {why}")
            continue
        devices[found["device"]] = None
        runners.append(farm.runner(member, found["device"]))
    if not runners:
        farm.close()
        reasons = "; ".join(warnings) or "it has none"
        raise OptionError(f"farm={address!r}: no worker can run candidates ({reasons})")
    here = fingerprint(target)
    if not any(same_model(other, here) for other in devices):
        warnings.append(f"no worker is of this machine's model, {label(here)}: what is found is "
                        "for machines like theirs, and defaults serve here")  # fmt: skip
    return Crew(runners, tuple(devices), tuple(warnings), farm.close)
