"""Results of a benchmark in a JSON file that is on disk after each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results"


class Sheet:
    """The rows so far, one per name and one per line. The newest row of a name stands. A file
    without rows is no error: nothing was measured yet."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []
        if file.exists():
            self.rows = json.loads(file.read_text(encoding="utf-8"))

    def has(self, name: str) -> bool:
        """Whether there is a row that is no error."""
        return any(r["name"] == name and "error" not in r for r in self.rows)

    def put(self, name: str, row: dict[str, Any]) -> None:
        """Add a row; the file is replaced at once, so that it is always whole."""
        self.rows = [*(r for r in self.rows if r["name"] != name), {"name": name} | rounded(row)]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(".new")
        lines = ",\n".join(map(json.dumps, self.rows))
        new.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        os.replace(new, self.file)


def rounded(value: Any) -> Any:
    """Every number of a structure to five digits, which is more than anything measured is worth."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
