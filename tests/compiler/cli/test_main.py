"""The command line as a whole: how it fails, what it logs, what it prints to whom."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tilewright.compiler.cli import console, main, run
from tilewright.compiler.options import ENVIRONMENT, VERSION

from .models import write_static, write_unsupported


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_static(tmp_path / "net.onnx"))


def test_errors_are_one_message_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["run", str(write_unsupported(tmp_path / "m.onnx"))]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "FancyNorm" in err and "FancierNorm" in err
    assert "Traceback" not in err
    assert "\x1b" not in err  # the node's name tries to steer the terminal


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["run", "nowhere.onnx"], "cannot be read: No such file"),
        (["run", "MODEL", "--target", "abacus"], "target='abacus'"),
        (["run", "MODEL", "--memory-limit", "much"], "'much' is not an amount"),
        (["run", "MODEL", "--shapes", "x"], "expected name=sizes"),
        (["run", "MODEL", "--shapes", "x=1,2"], "shapes: dimension 0 of input 'x' is 4"),
        (["run", "MODEL", "--shapes", "x=4,16", "--shapes", "x=4,16"], "twice"),
        (["run", "MODEL", "--threads", "0"], "threads=0"),
        (["run", "MODEL", "--outputs", "nothing"], "nothing"),
        (["compile", "MODEL", "-o", "no/such/folder/p.tw"], "cannot save to"),
        (["inspect", "MODEL", "--stage", "nothing"], "there are the levels graph, fused"),
        (["bench", "MODEL", "--peers", "caffe"], "expected some of onnxruntime"),
        (["bench", "MODEL", "--peers", "torch", "--outputs", "m"], "--peers with --outputs"),
        (["bench", "MODEL", "--rounds", "0"], "expected a positive number"),
    ],
)
def test_mistakes_are_explained(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    assert main.main([model if a == "MODEL" else a for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert why in err


def test_debug_level_2_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_DEBUG", "2")
    assert main.main(["run", "nowhere.onnx"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    monkeypatch.setenv("TILEWRIGHT_DEBUG", "1")
    assert main.main(["run", "nowhere.onnx"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_debug_sets_the_level_of_the_logger(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("tilewright")
    seen = {}
    for level in ("", "1", "3", "4"):
        monkeypatch.setenv("TILEWRIGHT_DEBUG", level)
        assert main.main(["env"]) == 0
        for severity in (logging.WARNING, logging.INFO, logging.DEBUG, 5):
            logger.log(severity, "severity %d\n", severity)
        lines = capsys.readouterr().err.splitlines()
        seen[level] = [line.split("severity ")[1] for line in lines]
    assert seen[""] == ["30\\n"]
    assert seen["1"] == ["30\\n", "20\\n"]
    assert seen["3"] == ["30\\n", "20\\n", "10\\n"]
    assert seen["4"] == ["30\\n", "20\\n", "10\\n", "5\\n"]
    monkeypatch.setenv("TILEWRIGHT_DEBUG", "loud")
    assert main.main(["env"]) == 2
    assert "TILEWRIGHT_DEBUG='loud'" in capsys.readouterr().err


def test_an_interrupt_is_status_130(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "open_program", interrupted)
    assert main.main(["run", model]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_broken_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tilewright", "env"]
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(writer)
    assert done.returncode == main.BROKEN_PIPE
    assert done.stderr == ""


def test_wrong_usage_is_status_2_and_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["juggle"], ["run"], ["cache"]):
        with pytest.raises(SystemExit) as stop:
            main.main(arguments)
        assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main.main(["--version"])
    assert stop.value.code == 0
    assert f"tilewright {VERSION}" in capsys.readouterr().out


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for module in main.COMMANDS:
        name = module.__name__.rsplit(".", 1)[1]
        with pytest.raises(SystemExit) as stop:
            main.main([name, "--help"])
        assert stop.value.code == 0
        assert f"usage: tilewright {name}" in capsys.readouterr().out


def test_env_lists_every_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    assert main.main(["env", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed.keys() == ENVIRONMENT.keys()
    assert listed["TILEWRIGHT_POISON"]["value"] == "1"
    assert main.main(["env"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ENVIRONMENT)


def test_a_name_outside_the_terminals_encoding_stops_nothing(tmp_path: Path) -> None:
    model = write_static(tmp_path / "modèle→.onnx")
    command = [sys.executable, "-m", "tilewright", "compile", str(model), "-o"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = subprocess.run([*command, str(tmp_path / "modèle→.tw")], env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\\u2192.tw" in done.stdout


class Terminal:
    """A stream that says it is one, and keeps what is written."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_progress_and_tables_are_drawn_on_a_terminal_only(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with console.progress("net") as report:
        assert report is None
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with console.progress("net", quiet=True) as report:
        assert report is None
    with console.progress("net\x1b[2J") as report:
        assert report is not None
        report("kernels", 3, 7)
    assert "kernels" in screen.text
    assert "\x1b[2J" not in screen.text
    monkeypatch.setattr(sys, "stdout", screen)
    screen.text = ""
    console.show_table([("a[bold]b\x1b[2J", 1)], ("name", "n"), "lr", "title")
    assert "a[bold]b\\x1b[2J" in screen.text
    assert "\x1b[1m" in screen.text  # the header is bold
