"""Runs as streams of events: what is told and in which order, and what stopping early leaves behind."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

import main2_mesh
import main_propeller
from gs_propeller.app.config import load
from gs_propeller.app.events import (
    Audience,
    CutOut,
    Event,
    FilesWritten,
    Note,
    PassDone,
    PriorFound,
    StageBegun,
    StageEnded,
)
from gs_propeller.app.log import Log
from tests.test_main import EXACT, _words, on_two_ranks, picture, prior, same, state_of

__all__ = ["picture", "prior"]  # fixtures


def _pass(step: int) -> PassDone:
    return PassDone("distil", step, 9, step, 1, 1, 0.1, {"N": "5"}, lambda azimuths, size: torch.zeros(0))


def test_the_commands_log_is_a_listener(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    for event in (
        PriorFound("the pocket prior"),
        Note("something"),
        StageBegun("distil", 0, 9),
        _pass(1),
        _pass(2),
        StageEnded("distil", 2, 9, "stopped"),
        FilesWritten("thing: done", {"glb": Path("thing.glb")}, [("steps", "2")]),
    ):
        log(event)
    said, shown = capsys.readouterr().err.splitlines(), capsys.readouterr()
    assert said[:2] == ["prior: the pocket prior", "note: something"]
    assert [line.split(" | ")[:2] for line in said[2:]] == [
        ["distil 1/9", "N 5"],
        ["distil 2/9", "N 5"],
    ]
    assert not shown.err


def test_who_hears_and_who_raises() -> None:
    heard: list[Event] = []
    audience = Audience(heard.append, heard.append)
    audience.note("twice")
    assert heard == [Note("twice")] * 2 and not audience.stop.is_set()

    def refusing(event: Event) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        Audience(heard.append, refusing).note("once")
    assert heard[2:] == [Note("once")]


@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_its_asset_and_goes_on_to_the_same_end(
    prior: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _words(prior, picture, tmp_path / "once", *EXACT)
    heard: list[Event] = []
    main_propeller.make_asset(load(words)[0], quiet=True, on_event=heard.append)
    passes = [event for event in heard if isinstance(event, PassDone)]
    kinds = [type(event) for event in heard if not isinstance(event, PassDone | Note)]
    assert kinds == [CutOut, StageBegun, StageEnded, FilesWritten]
    assert [event.step for event in passes] == list(range(1, 13)) and passes[0].steps == 12
    said = capsys.readouterr()
    assert not said.err and not said.out

    words = _words(prior, picture, tmp_path / "twice", *EXACT, "window=3")
    stop, drawn = threading.Event(), []

    def at_five(event: Event) -> None:
        heard.append(event)
        if isinstance(event, PassDone):
            drawn.append(event.draw([0.0, 120.0], 24))
            if event.step >= 5:
                stop.set()

    heard.clear()
    asset = main_propeller.make_asset(load(words)[0], on_event=at_five, stop=stop)
    (ended,) = [event for event in heard if isinstance(event, StageEnded)]
    assert ended.how == "stopped" and 5 <= ended.step == asset.state.step < 12
    assert f"stopped at step {ended.step} of 12" in capsys.readouterr().err
    assert drawn[0].shape == (2, 3, 24, 24) and not torch.equal(drawn[0], drawn[-1])
    assert torch.equal(drawn[-1], asset.viewer.around([0.0, 120.0], 24))
    assert all(path.exists() for path in asset.files.values())
    folder = tmp_path / "twice" / "thing"
    assert state_of(folder, ended.step).step == ended.step
    assert main_propeller.main(words) == 0
    assert same(state_of(folder), state_of(tmp_path / "once" / "thing"))
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(12))

    # the second stage of the same
    words += ["refine_steps=4", "refine_threshold=0", "turntable_frames=0", "window=1"]
    stop.clear()
    heard.clear()

    def at_two(event: Event) -> None:
        heard.append(event)
        if isinstance(event, PassDone) and event.step == 2:
            drawn.append(event.draw([0.0], 24))
            stop.set()

    part, files = main2_mesh.refine_asset(load(words)[0], quiet=True, on_event=at_two, stop=stop)
    told = [event for event in heard if not (isinstance(event, Note) and "compiling" in event.line)]
    assert [type(event) for event in told] == [StageBegun, PassDone, PassDone, StageEnded, Note, FilesWritten]
    assert drawn[-1].shape == (1, 3, 24, 24) and files["glb"].exists()
    assert (folder / "refine_checkpoint.safetensors").exists()
    heard.clear()
    whole, _ = main2_mesh.refine_asset(load(words)[0], quiet=True, on_event=heard.append)
    assert StageBegun("refine", 2, 4) in heard
    assert not torch.equal(part.texture, whole.texture)
    assert not (folder / "refine_checkpoint.safetensors").exists()
    again, _ = main2_mesh.refine_asset(load(words)[0], quiet=True)
    assert torch.equal(again.texture, whole.texture)


@pytest.mark.slow
def test_what_was_stopped_among_many_is_not_taken_for_done(
    prior: str, picture: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A queue goes on with both stages of it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.png").write_bytes(Path(picture).read_bytes())
    words = _words(prior, str(folder), tmp_path, "steps=3", "refine_steps=3", "turntable_frames=0")
    stop = threading.Event()
    stop.set()
    config = load(words)[0].but(input=str(folder / "one.png"))
    asset = main_propeller.make_asset(config, quiet=True, stop=stop)
    assert asset.state.step == 1
    assert main_propeller.main(words) == 0
    assert state_of(tmp_path / "one", 3).step == state_of(tmp_path / "two", 3).step == 3
    main2_mesh.refine_asset(config, quiet=True, stop=stop)
    assert main2_mesh.main(words) == 0
    assert "before" not in capfd.readouterr().out
    assert main2_mesh.main(words) == main_propeller.main(words) == 0
    assert capfd.readouterr().out.count("before") == 4


@pytest.mark.slow
def test_rank_0_alone_is_heard_and_may_stop(prior: str, picture: str, tmp_path: Path) -> None:
    words = _words(prior, picture, tmp_path, "window=4", "ranks=2", "turntable_frames=0", "steps=100000")
    stop, heard = threading.Event(), []

    def listening(event: Event) -> None:
        heard.append(event)
        if isinstance(event, PassDone) and event.passes == 2:
            stop.set()

    class Door:
        __file__ = main_propeller.__file__

        @staticmethod
        def main(words: list[str]) -> int:
            main_propeller.make_asset(load(words)[0], quiet=True, on_event=listening, stop=stop)
            return 0

    assert on_two_ranks(words, Door) == 0  # type: ignore[arg-type]
    assert [type(e) for e in heard].count(PassDone) == 2
    assert (tmp_path / "thing" / "thing.glb").exists()
