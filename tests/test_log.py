"""The live line, metrics that survive a resume, the summary."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gs_propeller.app import log
from gs_propeller.base.errors import UserError
from gs_propeller.solver.picard import Report

ROOT = Path(__file__).parent.parent
IMAGE = str(ROOT / "configs" / "image.yaml")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_line_is_rewritten_in_place() -> None:
    stream = Terminal()
    with log.Progress("distil", 10, 4, stream) as progress:
        progress.update(5, loss="0.5")
        progress.update(7, loss="0.4")
    text = stream.getvalue()
    assert text.count("\r") == 2
    assert text.count("\n") == 1
    assert "distil 7/10 | loss 0.4" in text


def test_without_a_terminal_lines_are_few_and_the_last_is_said() -> None:
    stream = io.StringIO()
    with log.Progress("distil", 100, 0, stream) as progress:
        for step in range(1, 101):
            progress.update(step)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("distil 1/100")
    assert lines[-1].startswith("distil 100/100")
    assert "ETA 0:00" in lines[-1]
    assert len(lines) < 5


def test_silence() -> None:
    with log.Progress("distil", 3, 0, None) as progress:
        progress.update(1)
    assert progress.line.startswith("distil 1/3")


def test_pace_counts_from_where_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    progress = log.Progress("distil", 20, 10, io.StringIO())
    now[0] = 108.0
    progress.update(14)
    assert "2.00 s/step | ETA 0:12" in progress.line


def test_metrics_drop_what_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    metrics = log.Metrics(path)
    for step in range(6):
        metrics.write(step=step, loss=1.5)
    metrics.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    again = log.Metrics(path, 4)
    again.write(step=4, loss=0.5)
    again.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[-1]["loss"] == 0.5
    log.Metrics(path).close()
    assert path.read_text() == ""


def test_skipped_steps_are_counted_and_said(tmp_path: Path) -> None:
    """Their losses are null; a run that goes on counts those before it too."""
    path, nan = tmp_path / "m.jsonl", float("nan")

    def report(start: int, rows: list[list[float]]) -> tuple[Report[int], list[torch.Tensor]]:
        drifts = tuple(range(len(rows)))
        return Report(start, len(rows), (), 1e-3, drifts, len(rows)), [torch.tensor(row) for row in rows]

    metrics = log.Metrics(path)
    shown = metrics.write_pass(*report(0, [[1.0, 2.0], [nan, 2.0]]), ["sds", "rgb"], 1, 9, 0.5)
    assert metrics.skipped == 1 and shown["skipped"] == "1" and shown["rgb"] == "2" and "sds" not in shown
    shown = metrics.write_pass(*report(2, [[1.0, float("inf")], [1.0, 0.0]]), ["sds", "rgb"], 2, 9, 0.5)
    assert metrics.skipped == 2 and shown["skipped"] == "2" and shown["sds"] == "1"
    metrics.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["sds"], line["rgb"]) for line in lines] == [
        (1.0, 2.0),
        (None, 2.0),
        (1.0, None),
        (1.0, 0.0),
    ]
    again = log.Metrics(path, 2)
    assert again.skipped == 1
    assert "skipped" in again.write_pass(*report(2, [[1.0, 1.0]]), ["sds", "rgb"], 2, 9, 0.5)
    again.close()
    fresh = log.Metrics(path)
    assert fresh.skipped == 0
    shown = fresh.write_pass(*report(0, [[1.0, 1.0]]), ["sds", "rgb"], 1, 9, 0.5, counted="cells")
    assert "skipped" not in shown and shown["cells"] == "9" and "N" not in shown
    fresh.close()


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "no folder").touch()
    with pytest.raises(UserError, match="cannot write"):
        log.Metrics(tmp_path / "no folder" / "m.jsonl")
    full = log.Metrics(tmp_path / "m.jsonl")
    full.close()
    full.file = open("/dev/full", "w")  # noqa: SIM115 - it stands in for the metrics' own file
    with pytest.raises(UserError, match=r"No space left.*free some space"):
        full.write(step=0)
    with pytest.raises(UserError, match="No space left"):
        full.close()  # on the way out of the run: the same error, not another


def test_summary_shows_whole_paths() -> None:
    stream = io.StringIO()
    path = "runs/" + "x" * 60 + "/y.glb"
    log.summary("done", [("glb", path)], stream)
    shown = stream.getvalue()
    assert "done" in shown and path in shown


@pytest.mark.slow
def test_what_takes_long_is_said() -> None:
    for spent_s, said in ((0.3, ["compiling"]), (0.0, [])):
        heard: list[str] = []
        with log.said_if_long("compiling", heard.append, after_s=0.1):
            time.sleep(spent_s)
        time.sleep(0.2)  # nor is it said afterwards
        assert heard == said


@pytest.mark.slow
def test_help_and_a_wrong_word_import_nothing_heavy() -> None:
    program = (
        "import sys, main_propeller, main2_mesh\n"
        "for door in (main_propeller, main2_mesh):\n"
        "    assert door.main(['--help']) == 0\n"
        f"    assert door.main(['--config', {IMAGE!r}, 'stepz=3']) == 2\n"
        f"    assert door.main(['--config', {IMAGE!r}, '--dry-run']) == 0\n"
        "print([m for m in ('torch', 'numba', 'scipy', 'numpy', 'trimesh', 'cv2', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_letters_that_a_console_lacks_are_codes() -> None:
    for words, said in (
        (["--config", IMAGE, "input=кот.png", "--dry-run"], "input: "),
        (["--config", IMAGE, "кот=1"], "error: unknown option '"),
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / "main_propeller.py"), *words],
            env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == (2 if "error" in said else 0), done.stderr
        assert rf"{said}\u043a\u043e\u0442" in (done.stdout + done.stderr).decode("cp1252")
