"""Kernels that were chosen before, in this process or another: found instead of written again.

One entry of the store holds the records of all fusion groups of a program (`kernels.known`). Its
key is everything that decides them: the groups, the device, and the source of whatever looks at a
group. A saved program brings its entry with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from ..graph.ir import Graph
from ..inspect.views import Kept
from ..kernels.device import Device
from ..kernels.ir import Launch, Unwritten
from ..kernels.known import Record
from ..kernels.select import Special, records, select
from ..options import VERSION
from ..store import Key, Store, source_digest

_ROOT: Final = Path(__file__).parents[2]
_DECIDING: Final = (
    "ops", "compiler/graph", "compiler/frontends", "compiler/kernels", "compiler/passes",
)  # fmt: skip


@cache
def templates_fingerprint() -> str:
    """A hash of the source that decides what graphs and what kernels come out: a change to it makes
    new entries."""
    return source_digest(
        file for folder in _DECIDING for file in sorted((_ROOT / folder).glob("*.py"))
    )


def known_key(shapes: Sequence[str], device: Device, chosen: str = "") -> Key:
    """Everything that decides the kernels of a program. shapes: the digests of its groups. chosen:
    the digest of what takes the place of defaults."""
    fields: dict[str, str | int] = {
        "what": "kernels of a program",
        "groups": hashlib.sha256("".join(shapes).encode()).hexdigest(),
        "templates": templates_fingerprint(),
        "tilewright": VERSION,
    }
    if chosen:
        fields["choices"] = chosen
    fields |= {name: getattr(device, name) for name in device.__dataclass_fields__}
    return tuple(fields.items())


def recalled(
    graph: Graph, device: Device, store: Store, special: Special | None = None, chosen: str = ""
) -> tuple[tuple[Launch, ...], Kept]:
    """As `select`, without writing the kernels that the store describes; and the entry that
    describes these, which is the caller's to store: nothing stays of a compilation that fails.

    special: as for `select`; chosen: a digest of all that it goes by beside the groups. Raises
    LoweringError naming the ops where no template fits.
    """
    key: Key = ()
    stored: bytes | None = None
    found: Mapping[str, Record] = {}

    def recall(shapes: Sequence[str]) -> Mapping[str, Record]:
        nonlocal key, stored, found
        key = known_key(shapes, device, chosen)
        stored = store.get(key)
        found = _decoded(stored)
        return found

    launches = select(graph, device, recall, special)
    if stored is not None and all(isinstance(x.kernel.phases, Unwritten) for x in launches):
        return launches, Kept(key, stored, False)
    made = records(graph, launches)
    if stored is not None and made == found:
        return launches, Kept(key, stored, False)
    return launches, Kept(key, json.dumps(made, separators=(",", ":")).encode(), True)


def _decoded(payload: bytes | None) -> Mapping[str, Record]:
    """Records by shape. What is no record is found out when one is used."""
    try:
        found = json.loads(payload or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
