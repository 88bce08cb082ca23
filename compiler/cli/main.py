"""`tilewright`: the commands, how they fail, and how much is logged."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

from ..errors import OptionError, TilewrightError
from ..options import VERSION
from ..text import printable
from . import (
    bench,
    bisect,
    cache,
    compile,
    doctor,
    env,
    inspect,
    opt,
    profile,
    records,
    report,
    run,
    tune,
)

COMMANDS: Final = (
    run, bench, compile, tune, profile, inspect, report, opt, bisect, records,
    cache, doctor, env,
)  # fmt: skip

INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
_LEVELS: Final = {"": logging.WARNING, "0": logging.WARNING, "1": logging.INFO,
                  "2": logging.DEBUG, "3": logging.DEBUG, "4": 1}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="tilewright",
        description="Compile computation graphs into native code; run, time and inspect them.",
        epilog="Exit status: 0 done, 1 bisect found a fault, 2 the command or the model is at "
        "fault, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"tilewright {VERSION}")
    commands = top.add_subparsers(dest="command", metavar="command", required=True)
    for module in COMMANDS:
        module.add_to(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. Errors of Tilewright come as one message, no traceback."""
    try:
        _accept_any_text()
        _log_to_stderr()
        args = parser().parse_args(argv)
        args.own_process = argv is None
        status: int = args.handler(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read our output has left. Python flushes stdout once more at its exit.
        _silence_stdout()
        return BROKEN_PIPE
    except (TilewrightError, OSError) as e:
        if _debug() >= 2:
            traceback.print_exc()
        print(f"error: {_message(e)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _message(e: BaseException) -> str:
    """What went wrong, on as many lines as it takes; names of a model cannot steer a terminal."""
    if isinstance(e, OSError) and e.strerror:
        text = f"{e.filename}: {e.strerror}" if e.filename else e.strerror
    else:
        text = str(e) or type(e).__name__
    return "\n".join(printable(line) for line in text.splitlines())


def _debug() -> int:
    text = os.environ.get("TILEWRIGHT_DEBUG", "").strip()
    return int(text) if text in _LEVELS and text else 0


def _log_to_stderr() -> None:
    """Warnings always; more with TILEWRIGHT_DEBUG, and tracebacks of errors from 2 on."""
    text = os.environ.get("TILEWRIGHT_DEBUG", "").strip()
    if text not in _LEVELS:
        raise OptionError(f"TILEWRIGHT_DEBUG={text!r}: expected a number from 0 to 4")
    logger = logging.getLogger("tilewright")
    logger.setLevel(_LEVELS[text])
    for handler in [h for h in logger.handlers if isinstance(h, _StderrHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(_StderrHandler())


class _StderrHandler(logging.StreamHandler):
    """To the stderr of the moment, `warning: message`."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {printable(record.getMessage())}"


def _accept_any_text() -> None:
    """A name that the terminal's encoding lacks is escaped, and stops nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence_stdout() -> None:
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
    except (OSError, ValueError):  # stdout is no file, as under a test
        pass
