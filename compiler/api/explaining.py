"""What `explain`, `trace` and `ir(op=, kernel=)` of a program do; loaded when somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import OptionError
from ..inspect.chrome import trace
from ..inspect.dossier import KernelPage, NodePage
from ..inspect.part import part_of
from ..inspect.trace import launch_named, launches_of, model_nodes, node_named
from ..inspect.views import Compilation

Page = NodePage | KernelPage


def nodes(c: Compilation[Any]) -> dict[str, tuple[int, ...]]:
    """The model's nodes, each with the numbers of the launches that compute it."""
    return {n: launches_of(c, n) for n in model_nodes(c)}


def page(c: Compilation[Any], op: str | None, kernel: str | None) -> Page:
    """About a node or a kernel. Raises OptionError unless exactly one is given, and is known."""
    if op is not None and kernel is None:
        return NodePage(c, op)
    if kernel is not None and op is None:
        return KernelPage(c, launch_named(c, kernel))
    raise OptionError("explain() takes either op='the name of a model node' or kernel='k12'")


def part(
    c: Compilation[Any], level: str, op: str | None, kernel: str | None,
    whole: Callable[[Compilation[Any], str], str],
) -> str:  # fmt: skip
    """What a level has of a node or a kernel. Raises OptionError as `page` does."""
    if op is not None and kernel is None:
        node = node_named(c, op)
        return part_of(c, launches_of(c, node), level, whole, (node,))
    if kernel is not None and op is None:
        return part_of(c, (launch_named(c, kernel),), level, whole)
    raise OptionError("ir() takes either op='the name of a model node' or kernel='k12'")


__all__ = ["Page", "nodes", "page", "part", "trace"]
