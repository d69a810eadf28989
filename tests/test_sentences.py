"""The commands with a prompt: whole assets, both stages, windows and ranks, a picture beside it, VSD."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import main2_mesh
import main_propeller
from gs_propeller.mesh.foreign import load_mesh
from gs_propeller.scenes.fields.state import FieldState
from gs_propeller.scenes.gaussians.state import State
from gs_propeller.solver import checkpoint
from guidance.folder import POCKET_TEXT
from tests import tiny_prior
from tests.test_main import EXACT, ROOT, SMALL, on_two_ranks, same, state_of, stop_after

TEXT = str(ROOT / "configs" / "text.yaml")
PROMPT = "a red cube"


@pytest.fixture(scope="module")
def text_prior(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_prior.write_text(tmp_path_factory.mktemp("text")))


def _words(text_prior: str, outdir: Path, *more: str) -> list[str]:
    return [
        "--config", TEXT, f"prompt={PROMPT}", f"text_prior={text_prior}", f"outdir={outdir}", *SMALL, *more
    ]  # fmt: skip


@pytest.fixture(scope="module")
def serial(text_prior: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outdir = tmp_path_factory.mktemp("serial")
    assert main_propeller.main(_words(text_prior, outdir, *EXACT)) == 0
    return outdir


@pytest.mark.slow
def test_a_sentence_becomes_an_asset_by_both_stages(
    serial: Path, text_prior: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = serial / "a-red-cube"
    assert len(load_mesh(folder / "a-red-cube.glb").mesh.faces) > 20
    assert main2_mesh.main(_words(text_prior, serial)) == 0
    refined = load_mesh(folder / "a-red-cube_refined.glb")
    assert refined.texture.shape == (64, 64, 3)
    assert not refined.texture.equal(load_mesh(folder / "a-red-cube.glb").texture)
    assert (folder / "config.yaml").exists() and (folder / "refine_config.yaml").exists()
    picture = [f"input={ROOT / 'data' / 'cat.png'}", "prior=pocket", "name=a-red-cube"]
    assert main2_mesh.main(_words(text_prior, serial, *picture)) == 2
    assert "was not made of" in capsys.readouterr().err


STAGES = """stages=[{scene: gaussians, steps: 5}, {scene: tetrahedra, steps: 8, grid_cells: 8, grid_levels: 2,
    updates_per_evaluation: 2, changes: {3: {render_size: 24, batch_size: 3}}}]"""


def _staged(prior: str, outdir: Path, *more: str) -> list[str]:
    """Each stage has its own steps."""
    words = _words(prior, outdir, STAGES, *EXACT, "turntable_frames=0", *more)
    return [word for word in words if not word.startswith("steps=")]


@pytest.mark.slow
def test_windows_and_ranks_give_the_serial_state_stage_by_stage(
    text_prior: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gaussians, then tetrahedra that start from them and whose views grow: serially, at once, by two ranks, and
    interrupted in the first stage and in the second."""
    assert main_propeller.main(_staged(text_prior, tmp_path / "serial")) == 0
    assert "note: stage 2 of 2: tetrahedra, 8 steps" in capsys.readouterr().err
    expected = [state_at(tmp_path / "serial", stage) for stage in ("1-gaussians", "")]
    assert [state.step for state in expected] == [5, 8]
    assert on_two_ranks(_staged(text_prior, tmp_path / "two", "window=3", "ranks=2")) == 0
    again = _staged(text_prior, tmp_path / "cut", "window=3")
    for last in (3, 6):
        stop_after(monkeypatch, last)
        assert main_propeller.main(again) == 130
        monkeypatch.undo()
    assert state_at(tmp_path / "cut", "1-gaussians").step == 5 and state_at(tmp_path / "cut", "").step < 8
    assert main_propeller.main(again) == 0
    for name in ("two", "cut"):
        for state, stage in zip(expected, ("1-gaussians", ""), strict=True):
            assert same(state, state_at(tmp_path / name, stage)), (name, stage)
    first = tmp_path / "cut" / "a-red-cube" / "1-gaussians" / checkpoint.FILE
    before = first.stat().st_mtime_ns
    assert main_propeller.main(again) == 0 and first.stat().st_mtime_ns == before
    capsys.readouterr()
    longer = [word.replace("steps: 5", "steps: 7") for word in again]
    assert main_propeller.main(longer) == 2  # it would leave the second stage without what it began from
    assert "began from the end of the run in" in capsys.readouterr().err
    assert first.stat().st_mtime_ns == before


def state_at(outdir: Path, stage: str) -> Any:
    read = State.from_tensors if stage else FieldState.from_tensors
    return checkpoint.first_state(outdir / "a-red-cube" / stage / checkpoint.FILE, read)


@pytest.mark.slow
def test_a_picture_and_a_sentence_together(text_prior: str, serial: Path, tmp_path: Path) -> None:
    both = [f"input={ROOT / 'data' / 'cat.png'}", "prior=pocket", "name=both"]
    assert main_propeller.main(_words(text_prior, tmp_path, *both, "lambda_sd=0.5", "steps=4")) == 0
    losses = [json.loads(x) for x in (tmp_path / "both" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["sds"] > 0 for line in losses) and losses[-1]["rgb"] > 0
    alone = [json.loads(x) for x in (serial / "a-red-cube" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["rgb"] == 0 for line in alone)


@pytest.mark.slow
def test_vsd_keeps_a_learner_for_each_rank(text_prior: str, tmp_path: Path) -> None:
    assert on_two_ranks(_words(text_prior, tmp_path, "loss=vsd", "window=4", "ranks=2")) == 0
    folder = tmp_path / "a-red-cube"
    assert (folder / "a-red-cube.glb").exists()
    for rank in range(2):
        assert (folder / f"particle0_rank{rank}.safetensors").stat().st_size > 1000


@pytest.mark.slow
def test_vsd_goes_on_where_it_stopped(
    text_prior: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serially a run interrupted is the run undisturbed, learner and all."""
    words = [*EXACT, "loss=vsd", "window=1"]
    assert main_propeller.main(_words(text_prior, tmp_path / "whole", *words)) == 0
    stop_after(monkeypatch, 5)
    assert main_propeller.main(_words(text_prior, tmp_path / "cut", *words)) == 130
    monkeypatch.undo()
    assert main_propeller.main(_words(text_prior, tmp_path / "cut", *words)) == 0
    assert same(state_of(tmp_path / "whole" / "a-red-cube"), state_of(tmp_path / "cut" / "a-red-cube"))


@pytest.mark.slow
@pytest.mark.skipif(not (POCKET_TEXT / "unet").is_dir(), reason="the pocket text prior is not in data/")
def test_unknown_words_are_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = ("closing_updates=", "reference_size=")
    small = [word for word in SMALL if not word.startswith(pictures)]
    words = ["--config", TEXT, "prompt=a red cub and a hippo", f"outdir={tmp_path}", *small, "steps=1"]
    assert main_propeller.main(words) == 0
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("note: ")]
    assert "cub (near it: cube" in line and "hippo" in line
