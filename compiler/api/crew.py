"""Who runs candidates: this machine, or the workers of a farm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...autotune.errors import TunerError
from ...autotune.farm import Farm
from ...autotune.runner import Runner
from ..codegen.cpu.target import CpuTarget
from ..codegen.cuda.target import CudaTarget, best_arch
from ..errors import OptionError, TargetError
from ..kernels.device import Device
from ..runtime.cuda_device import all_facts
from ..tuning import farmhand
from ..tuning.fingerprint import fingerprint, label, same_model
from ..tuning.local import gpu_runner, local_runner
from .gpu_devices import place_of


@dataclass(frozen=True, slots=True)
class Crew:
    """Runners, and the devices that they are: tasks are tuned for each of them. warnings: such as
    who does not take part, and why. builds_here: what they build is in this machine's store."""

    runners: Sequence[Runner]
    devices: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    close: Callable[[], None] = lambda: None
    builds_here: bool = True


def local_crew(target: CpuTarget | CudaTarget, device: Device, *, all_gpus: bool = False) -> Crew:
    """Worker processes of this machine. all_gpus: every device takes part that runs code for
    `target`, not only its own."""
    if not isinstance(target, CudaTarget):
        return Crew((local_runner(),), (fingerprint(target),))
    numbers = [target.device or 0]
    if all_gpus:
        numbers = [k for k, f in enumerate(all_facts()) if _arch(f.capability) == target.arch]
    places = {k: place_of(k) for k in numbers}
    runners = [gpu_runner(k, place, len(places)) for k, place in places.items()]
    return Crew(runners, tuple(dict.fromkeys(places.values())))


def farm_crew(address: str, target: CpuTarget | CudaTarget, device: Device) -> Crew:
    """The workers of a cluster that can run what is compiled for `target`, used as `device`.

    Raises OptionError when there is no such cluster, or none of its workers can.
    """
    try:
        farm = Farm(address, farmhand.measure, farmhand.describe)
    except TunerError as e:
        raise OptionError(f"farm={address!r}: {e}") from e
    runners: list[Runner] = []
    devices: dict[str, None] = {}
    names: dict[str, str] = {}  # of GPUs, with who has them
    unused: dict[str, str] = {}
    warnings = []
    for member, told in farm.members().items():
        found = farmhand.offer(told, device)
        why = farmhand.objection(found, device)
        if why is not None or isinstance(found, str):
            warnings.append(f"{member} takes no part: {why}")
            continue
        name = found.get("name", member)
        if name in names:
            warnings.append(f"{member} takes no part: its GPU is that of {names[name]}; workers see"
                            " those that CUDA_VISIBLE_DEVICES names")  # fmt: skip
            continue
        names[name] = member
        unused |= dict.fromkeys(found.get("others", ()), member)
        devices[found["device"]] = None
        runners.append(farm.runner(member, found["device"]))
    if not runners:
        farm.close()
        reasons = "; ".join(warnings) or "it has none"
        raise OptionError(f"farm={address!r}: no worker can run candidates ({reasons})")
    idle = [member for name, member in unused.items() if name not in names]
    if idle:
        warnings.append(f"GPUs without a worker: {len(idle)}, which {idle[0]} sees; a worker uses"
                        " the first that it sees, so start one for each of them")  # fmt: skip
    here = _place(target)
    if here and not any(same_model(other, here) for other in devices):
        warnings.append(f"no worker is of this machine's model, {label(here)}: what is found is "
                        "for machines like theirs, and defaults serve here")  # fmt: skip
    return Crew(runners, tuple(devices), tuple(warnings), farm.close, builds_here=False)


def _place(target: CpuTarget | CudaTarget) -> str:
    """The fingerprint of what a program for `target` runs on here; "" where it has no device."""
    if not isinstance(target, CudaTarget):
        return fingerprint(target)
    return "" if target.device is None else place_of(target.device)


def _arch(capability: tuple[int, int]) -> str | None:
    """What `best_arch` says; None for devices too old."""
    try:
        return best_arch(capability)
    except TargetError:
        return None
