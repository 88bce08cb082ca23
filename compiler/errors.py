"""Every error class that a user of Tilewright can meet.

A message says what happened, where (model node, operator, dtypes, shapes), why, and what to do
next. The operator library (`tilewright.ops`) stands below this file and raises its own
`OperatorError`; the graph builder turns it into a `GraphError` that names the node.
"""

from __future__ import annotations


class TilewrightError(Exception):
    """Base of every error that Tilewright raises on purpose."""


class OptionError(TilewrightError, ValueError):
    """An argument or environment variable has a value that makes no sense."""


class TargetError(TilewrightError):
    """The target is unknown, or this machine cannot build or run code for it."""


class ModelError(TilewrightError):
    """The model file or object is damaged, inconsistent or uses something that is not allowed."""


class UnsupportedOperator(ModelError):
    """Nodes of the model that cannot be compiled, all of them listed at once."""


class GraphError(TilewrightError):
    """A graph is not well formed: unknown blob, clashing types, cycle, bad attribute."""


class TextError(GraphError):
    """Graph text that does not parse; carries the line and column."""


class InputError(TilewrightError, ValueError):
    """An array given to an executable does not fit: name, shape or dtype."""


class MemoryLimitError(TilewrightError):
    """`memory_limit` cannot be met; names the op and the bytes alive there.

    least_bytes: a limit that can be met, the least known; None where there is no memory at all.
    """

    def __init__(self, message: str, least_bytes: int | None = None) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes


class PlanError(TilewrightError):
    """A memory plan failed its independent verification: always a bug, never served."""


class LoweringError(TilewrightError):
    """No kernel could be made for a group of operators, or its code did not build."""


class RecordsError(TilewrightError):
    """Records of tuning cannot be read, exchanged or kept."""


class ArtifactError(TilewrightError):
    """A saved executable cannot be loaded: damaged, or made for another machine or version."""


class NoDeviceError(TargetError):
    """There is no NVIDIA driver here, or none of its devices is the one that was asked for."""


class DriverVersionError(TargetError):
    """NVIDIA's driver is too old for the code; says which version takes it."""


class ArchitectureError(TargetError):
    """Code for one GPU architecture does not run on a device of another one."""


class DeviceMemoryError(MemoryLimitError):
    """A device has not as much free memory as was asked for.

    wanted_bytes: of the allocation; free_bytes: what the device had left, None where unknown.
    """

    def __init__(self, message: str, wanted_bytes: int, free_bytes: int | None) -> None:
        super().__init__(message)
        self.wanted_bytes = wanted_bytes
        self.free_bytes = free_bytes


class DeviceError(TilewrightError):
    """NVIDIA's driver refuses a call. code: its CUresult."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class DeviceLostError(DeviceError):
    """A kernel did on a device what makes the driver refuse all further work of this process there:
    an access to memory that is not its own, for example. Other devices go on."""


class ForkedError(DeviceError):
    """A process was forked after CUDA had begun in its parent; CUDA does not work in such a one."""
