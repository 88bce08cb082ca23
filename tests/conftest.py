"""Shared by all tests: a cache of their own, Hypothesis's profiles, golden files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

GOLDEN = Path(__file__).parent / "golden"

# Quick tests draw the same examples each time: a red run stays red until something is mended.
settings.register_profile("quick", deadline=None, derandomize=True, database=None, max_examples=30)
settings.register_profile("search", deadline=None, print_blob=True, max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the golden files anew instead of comparing with them",
    )


_cache: str | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Keep the user's cache out of it. Workers inherit the folder from the process they serve."""
    global _cache
    if not hasattr(config, "workerinput"):
        _cache = tempfile.mkdtemp(prefix="tilewright-tests-")
        os.environ["XDG_CACHE_HOME"] = _cache


def pytest_unconfigure() -> None:
    if _cache is not None:
        shutil.rmtree(_cache, ignore_errors=True)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(text, "passes/fuse.txt")` compares with that file below tests/golden."""
    update = request.config.getoption("--update-golden")

    def check(text: str, name: str) -> None:
        path = GOLDEN / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no golden file {name}: run pytest with --update-golden, read it"
        assert text == path.read_text(encoding="utf-8"), (
            f"{name} differs; if the change is meant, run pytest with --update-golden"
        )

    return check
