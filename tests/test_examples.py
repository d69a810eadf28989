"""The examples run, and what they print is true."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.test_package import SMALL

ROOT = Path(__file__).parent.parent


def example(number: int) -> dict[str, Any]:
    (path,) = (ROOT / "examples").glob(f"{number}_*.py")
    return runpy.run_path(str(path))


@pytest.mark.slow
def test_an_asset_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = example(1)["main"]([str(ROOT / "data" / "cat.png"), *SMALL, f"outdir={tmp_path}"])
    assert (config.run_folder / "cat.glb").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "step 3 of 3: mean colour" in said and "three views: (3, 3, 64, 64)" in said


@pytest.mark.slow
def test_the_solver_around_a_pendulum() -> None:
    exact, near, nearer = example(2)["main"]()
    assert exact[2] == 0.0 and exact[1] < 0.5 * 400
    assert near[1] < exact[1] and near[2] < 1e-5  # 98 passes, 2.7e-6
    assert nearer[1] < near[1] and nearer[2] < 5e-4  # 80 passes, 1.4e-4


@pytest.mark.slow
def test_a_prior_of_ones_own() -> None:
    image = example(3)["main"]()
    (red, _, _), (_, _, blue) = image[:, 18, 24], image[:, 30, 24]
    assert red > image[2, 18, 24] + 0.3 and blue > image[0, 30, 24] + 0.3
    assert image[:, 2, 2].min() > 0.95  # nothing beside it
