"""Checkpoints hold the whole window and know whose they are; a folder has one run; signals wait for the pass."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from gs_propeller.app.config import SECTION_OF, Config
from gs_propeller.app.fingerprint import FREE, fingerprint
from gs_propeller.base.errors import UserError
from gs_propeller.base.files import atomic
from gs_propeller.scenes.gaussians.state import State, init_ball
from gs_propeller.solver import checkpoint
from gs_propeller.solver.picard import Window
from guidance import POCKET


def _window() -> Window:
    first = init_ball(9, 0.5, 1, 0)
    second = replace(first, params=first.params.map(lambda x: x + 1), step=1)
    return Window((first, second), 5, 0.25, passes=3, evaluations=11)


def test_a_window_comes_back_whole(tmp_path: Path) -> None:
    window = _window()
    checkpoint.save(tmp_path / checkpoint.FILE, window, "mark", 12.5)
    found = checkpoint.restore(tmp_path / checkpoint.FILE, "mark", State.from_tensors)
    assert found is not None
    again, seconds = found
    assert seconds == 12.5
    assert (again.start, again.threshold, again.passes, again.evaluations) == (5, 0.25, 3, 11)
    for one, two in zip(window.states, again.states, strict=True):
        tensors = two.tensors()
        assert all(torch.equal(value, tensors[key]) for key, value in one.tensors().items())


def test_another_run_s_checkpoint_is_refused(tmp_path: Path) -> None:
    assert checkpoint.restore(tmp_path / checkpoint.FILE, "mark", State.from_tensors) is None
    checkpoint.save(tmp_path / checkpoint.FILE, _window(), "mark", 0.0)
    with pytest.raises(UserError, match="other options or another picture"):
        checkpoint.restore(tmp_path / checkpoint.FILE, "other", State.from_tensors)
    whole = (tmp_path / checkpoint.FILE).read_bytes()
    mark = fingerprint(Config(steps=3), b"cat")
    checkpoint.save(tmp_path / checkpoint.FILE, _window(), mark, 0.0)
    other = fingerprint(Config(steps=2, lambda_rgb=1), b"dog")
    said = r"a run with lambda_rgb=10000.0 \(here 1\), steps=3 \(here 2\), another file as the picture or mesh; add"
    with pytest.raises(UserError, match=said):
        checkpoint.restore(tmp_path / checkpoint.FILE, other, State.from_tensors)
    checkpoint.save(tmp_path / checkpoint.FILE, _window(), fingerprint(Config(hue=0.5), b"cat"), 0.0)
    with pytest.raises(
        UserError, match=r"a run with hue=0.5 \(here default\), mirror=default \(here 0.25\);"
    ):
        checkpoint.restore(
            tmp_path / checkpoint.FILE, fingerprint(Config(mirror=0.25), b"cat"), State.from_tensors
        )
    for torn in (b"torn", whole[: len(whole) // 2]):
        (tmp_path / checkpoint.FILE).write_bytes(torn)
        with pytest.raises(UserError, match="resume=false"):
            checkpoint.restore(tmp_path / checkpoint.FILE, "mark", State.from_tensors)


def test_what_makes_another_run() -> None:
    base = Config(input="a.png")
    mark = fingerprint(base, b"picture")
    assert fingerprint(base.but(seed=1), b"picture") != mark
    assert fingerprint(base.but(steps=7), b"picture") != mark
    assert fingerprint(base, b"another") != mark
    free = base.but(
        ranks=4, window=8, threads=3, texture_size=512, outdir="elsewhere", input="./a.png", name="b"
    )
    assert fingerprint(free, b"picture") == mark
    assert set(SECTION_OF) >= FREE


def test_a_run_names_the_weights_that_it_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Config(input="a.png", prior="pocket")
    mark, made = fingerprint(base, b""), json.loads((POCKET / "training.json").read_text())
    made["sha256"]["unet/diffusion_pytorch_model.safetensors"] = "0123456789abcdef"
    (tmp_path / "training.json").write_text(json.dumps(made))
    monkeypatch.setattr("gs_propeller.app.fingerprint.POCKET", tmp_path)
    monkeypatch.setattr("gs_propeller.app.fingerprint.find_prior", lambda name: str(tmp_path))
    assert "(here pocket 01234567)" in str(checkpoint.differing(mark, fingerprint(base, b"")))


def test_a_run_of_more_steps_goes_on(tmp_path: Path) -> None:
    mark = fingerprint(Config(steps=5), b"")
    checkpoint.save(tmp_path / checkpoint.FILE, _window(), mark, 0.0)
    longer = fingerprint(Config(steps=9), b"")
    assert checkpoint.restore(tmp_path / checkpoint.FILE, longer, State.from_tensors) is not None
    for other in (Config(steps=4), Config(steps=9, seed=1)):
        assert checkpoint.differing(mark, fingerprint(other, b"")) is not None
    assert checkpoint.differing(mark, json.dumps({"steps": "nine"})) is not None
    for steps, goes_on in (
        (6, True),
        (7, False),
    ):  # the seventh update had an evaluation of its own, for three
        short, long = (fingerprint(Config(steps=n, updates_per_evaluation=3), b"") for n in (steps, 9))
        assert (checkpoint.differing(short, long) is None) == goes_on
    said = "a run with steps=7 (here 9; it goes on from a multiple of updates_per_evaluation=3 alone)"
    assert checkpoint.differing(short, long) == said


def test_in_a_thread_signals_stay_with_the_program() -> None:
    """A web server runs its jobs in threads, where Python lets nobody handle signals."""
    before, said = signal.getsignal(signal.SIGINT), []

    def job() -> None:
        with checkpoint.interrupts() as stop, checkpoint.terms_as_interrupts():
            said.append(stop.asked)

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert said == [False]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_lock_without_fcntl(tmp_path: Path) -> None:
    """As on Windows, whose own module is stood in for by one that keeps what it was asked."""
    program = """
import sys, types, torch
sys.modules["fcntl"] = None  # what is imported from here on is on Windows
taken = []
def locking(handle, mode, size):
    if taken: raise OSError(36, "Resource deadlock avoided")
    taken.append((mode, size))
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
from pathlib import Path
from gs_propeller.base.errors import UserError
from gs_propeller.solver import checkpoint
with checkpoint.lock(Path(sys.argv[1])):
    try:
        with checkpoint.lock(Path(sys.argv[1])): pass
    except UserError as error:
        print(taken, error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.startswith("[(2, 1)] another run is at work"), done.stderr


def test_files_are_flushed_through_a_handle_that_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)
    )
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert modes == [os.O_RDWR]


def _hold(folder: str, pipe: Connection) -> None:
    with checkpoint.lock(Path(folder)):
        pipe.send("held")
        pipe.recv()


@pytest.mark.slow
def test_one_run_a_folder_and_the_dead_let_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    other = context.Process(target=_hold, args=(str(tmp_path), theirs))
    other.start()
    assert ours.recv() == "held"
    with pytest.raises(UserError, match="another run is at work"), checkpoint.lock(tmp_path):
        pass
    other.kill()
    other.join()
    with checkpoint.lock(tmp_path):
        pass
    with pytest.raises(UserError, match="choose another outdir"), checkpoint.lock(Path("/proc/nowhere")):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_set_a_flag_and_the_second_stops(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with checkpoint.interrupts() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.pause()
    assert signal.getsignal(number) is before
