"""A bench of whole assets that was interrupted goes on, and its sheet has every object; the response is measured."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from bench import response, whole
from bench.kept import Figures
from bench.solving import configured
from bench.truth import Case
from guidance.pocket.data import VALIDATION_SEED, posed


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setattr(whole, "STORE", tmp_path / "kept")
    words = ["--objects", "2", "--models", "0", "--jobs", "0", "--sheet", str(tmp_path / "sheet.png")]
    return whole.arguments("", "asset", 12).parse_args([*words, "steps=3"])


class Counted:
    """A score that says which objects it was asked for, by settings as they came."""

    def __init__(self, fails: str = "") -> None:
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        self.fails = fails

    def __call__(self, case: Case, folder: Path, pairs: list[str], config: str) -> tuple[Figures, Tensor]:
        if case.name.startswith(self.fails or "none"):
            raise KeyboardInterrupt
        self.seen.append((case.name, tuple(pairs)))
        return {"psnr_db": float(len(self.seen))}, torch.full((3, 4, 16), len(self.seen) / 10)


def test_an_interrupted_bench_goes_on_where_it_was(asked: argparse.Namespace) -> None:
    broken = Counted(fails="quadruped")
    with pytest.raises(KeyboardInterrupt):
        whole.measured("asset", broken, asked, cat=True)
    assert [name for name, _ in broken.seen] == ["cat", "sitter-2000"]
    assert broken.seen[0][1] == ("steps=3", "threads=1")

    rest = Counted()
    objects, models = whole.measured("asset", rest, asked, cat=True)
    assert [name for name, _ in rest.seen] == ["quadruped-2001"]
    assert objects == {
        "cat": {"psnr_db": 1.0},
        "sitter-2000": {"psnr_db": 2.0},
        "quadruped-2001": {"psnr_db": 1.0},
    }
    assert models == {}
    assert Image.open(asked.sheet).size == (16, 12)


def test_other_settings_or_a_lost_sheet_are_measured_again(asked: argparse.Namespace) -> None:
    whole.measured("asset", Counted(), asked, cat=False)
    next(whole.STORE.glob("*.png")).unlink()
    lost, other, mesh = Counted(), Counted(), Counted()
    whole.measured("asset", lost, asked, cat=False)
    assert len(lost.seen) == 1
    whole.measured("mesh", mesh, asked, cat=False)
    assert len(mesh.seen) == 2
    asked.pairs = ["steps=4"]
    whole.measured("asset", other, asked, cat=False)
    assert len(other.seen) == 2


@pytest.mark.slow
def test_the_response_falls_with_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PLACES", (1,)), ("APART", 1), ("LEVELS", 3)):
        monkeypatch.setattr(response, name, value)
    config = configured(
        Case("solids", *posed("solids", VALIDATION_SEED)), {"num_points": 200, "steps": 9, "batch_size": 1}
    )
    found = response.measured([config])  # of a picture, which is seen in its variants
    assert found[0] > 0.5 > found[-1] and len(found) == 3
