"""Who runs candidates on this machine."""

from __future__ import annotations

import sys
from typing import Final

from ...autotune.isolation import IsolatedRunner

WORKER: Final = f"{__package__}.worker"


def local_runner() -> IsolatedRunner:
    """Worker processes of this interpreter; none is started before there is something to run."""
    return IsolatedRunner((sys.executable, "-m", WORKER))
