"""The GPU's bench, on the processor and a tiny prior: that every part of it runs, whatever the figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from bench import gpu


@pytest.mark.slow
def test_every_part_runs_small_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but torch.compile, which wants a compiler and a minute, and the two processes."""
    words = ["--small", "--device", "cpu", "--skip", "compiled", "ranks", "--out", str(tmp_path / "gpu.json"),
             "--profile", str(tmp_path / "profile.txt")]  # fmt: skip
    assert gpu.main(words) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == json.loads((tmp_path / "gpu.json").read_text())
    assert set(figures) == {"device", "backends", "drift", "roll-out", "window", "floor", "profile"}
    assert figures["floor"]["one drift repeated"]["bitwise_equal"]  # a CPU adds in a fixed order
    assert figures["backends"]["cpu"]["gradient_error"] < 1e-5
    assert re.search("pip install|needs CUDA tensors", figures["backends"]["inria"]["skipped"])
    assert len(figures["window"]) == 4
    assert "conv" in (tmp_path / "profile.txt").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_the_model_of_several_devices_takes_its_figures() -> None:
    row = {"roll_out_ms": 7.0, "guess_ms": 0.1}
    figures = {
        "drift": {"batch 1": {"drift_ms": 1.0}, "batch 16": {"drift_ms": 1400.0}},
        "roll-out": {"the asset's size": row},
        "ranks": {"batch 16, 2 slots": {"message_ms": 1.0}},
    }
    found = gpu.modelled(figures)
    assert found["costs"]["drift"] == pytest.approx(1.4)
    assert 6.0 < found["speedup_at_8_usual"] < found["speedup_at_8_full"] < 8.0
