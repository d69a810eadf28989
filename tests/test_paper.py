"""The paper's table: its measures by hand, and a smoke run that an interruption would not lose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import paper
from tests import tiny_prior


def test_the_distance_between_features_by_its_formula() -> None:
    """Of normal distributions along the axes: squared differences of means and of standard deviations."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    one, other = signs * torch.tensor([1.0, 2.0]), signs * torch.tensor([3.0, 0.5]) + torch.tensor([0.0, 4.0])
    wanted = 16 + (4 / 3) * ((3 - 1) ** 2 + (2 - 0.5) ** 2)  # deviations of four signs, unbiased
    assert paper.frechet(one, other) == pytest.approx(wanted, rel=1e-12)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    assert paper.frechet(one @ turn, other @ turn) == pytest.approx(wanted, rel=1e-12)
    assert paper.frechet(one, one) == pytest.approx(0.0, abs=1e-12)


def test_a_window_that_accepts_everything_is_as_fast_as_its_devices_allow() -> None:
    stage = {"steps": 80, "accepted": [8] * 10, "every": 1}
    all_of_it = paper.modelled([{"stages": [stage]}], "dreamgaussian")
    half = paper.modelled([{"stages": [stage | {"accepted": [4] * 20}]}], "dreamgaussian")
    assert 6.5 < all_of_it < 8 and half == pytest.approx(all_of_it / 2, rel=0.1)


@pytest.mark.slow
def test_a_smoke_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prior = tiny_prior.write_text(tmp_path / "prior")
    monkeypatch.setattr(paper, "STORE", tmp_path / "kept")
    monkeypatch.setattr(paper, "TEXT_PRIOR", str(prior))
    words = ["--small", "--systems", "magic3d", "--prompts", "1", "--jobs", "0"]
    paper.main(words)
    first = capsys.readouterr().out.splitlines()[-1]
    row = json.loads(first)["magic3d"]
    names = ["r_precision", "fid", "seconds"]
    assert set(row) >= {*names, *(f"parallel_{n}" for n in names), "steps_per_pass", "modelled_speedup_at_8"}
    assert 0 <= row["r_precision"] <= 1 and row["fid"] > 0 and 1 <= row["steps_per_pass"] <= 3
    monkeypatch.setattr(paper, "work", None)  # nothing is left to do
    paper.main(words)
    assert capsys.readouterr().out.splitlines()[-1] == first
