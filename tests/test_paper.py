"""The paper's table: its measures by hand, and a smoke run that an interruption would not lose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import paper, paper_figures, paper_ranks
from bench.model import Costs, loop_s
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


@pytest.mark.parametrize("costs", [Costs(0.316, 0.036, 0.001, 0.003), Costs(1.39, 0.01, 0.001, 0.005)])
def test_auto_takes_the_faster_of_both_ways(costs: Costs) -> None:
    """A CPU's costs and a GPU's, windows of one to four rounds that accept everything, by the protocol itself."""
    for devices in (2, 4, 8, 16, 64):
        for window in (devices * rounds for rounds in (1, 2, 3, 4)):
            own, shared, auto = (
                loop_s(costs, [window] * 6, 6 * window, window, devices, how) for how in (True, False, None)
            )
            assert auto <= 1.02 * min(own, shared), (devices, window)


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
    assert Image.open(tmp_path / "kept.png").size == (200, 100)
    monkeypatch.setattr(paper, "work", None)  # nothing is left to do
    paper.main(words)
    assert capsys.readouterr().out.splitlines()[-1] == first
    for k in range(3):
        Image.effect_noise((40, 30), 20.0 * k).convert("RGB").save(tmp_path / f"{k}.jpg")
    paper.main([*words, f"reference={tmp_path}"])
    other = json.loads(capsys.readouterr().out.splitlines()[-1])["magic3d"]
    assert other["fid"] != row["fid"] and other["r_precision"] == row["r_precision"]


def test_a_run_to_be_timed_has_a_share_of_every_stage() -> None:
    pairs = dict(paper_ranks.shortened("magic3d", 5))
    config = paper.configured(paper.Job(0, "magic3d", "parallel", pairs=tuple(pairs.items())), "")
    assert [stage["steps"] for stage in json.loads(config.stages)] == [42, 18]
    assert dict(paper_ranks.shortened("dreamfusion", 5)) == {"steps": 60}
    assert dict(paper_ranks.shortened("dreamfusion", 10**6)) == {"steps": 1}


def test_a_reference_of_no_pictures_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        paper.main([f"reference={tmp_path / 'none'}"])
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="two pictures or more"):
        paper.reference_features(None, tmp_path)  # type: ignore[arg-type]


def test_figures_count_what_their_runs_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs that accept everything, in place of real ones."""

    def whole(one: paper.Job | paper_figures.Picture) -> dict[str, object]:
        window = paper.WINDOWS[one.way]
        passes = 80 // window
        stage = {"steps": 80, "passes": passes, "seconds": 1.0, "accepted": [window] * passes, "every": 1}
        return {"stages": [stage], "novel_psnr_db": 20.0, "novel_iou": 0.9, "input_psnr_db": 30.0}

    monkeypatch.setattr(paper, "STORE", tmp_path)
    monkeypatch.setattr(paper_figures, "work", whole)
    rows = paper_figures.figure_6([1, 2], 0)
    assert set(rows) == set(paper_figures.PICTURED)
    for row in rows.values():
        assert row["steps_per_pass"] == 8.0 and 5 < row["modelled_speedup_at_8"] < 8
        assert row["novel_psnr_db"] == row["parallel_novel_psnr_db"] == 20.0
    changed = paper_figures.choices(4)
    assert {"window 2", "gamma 1", "batch 8"} <= set(changed) and changed["batch 8"][1] == {"batch_size": 8}
