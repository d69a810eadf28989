"""Ranks: real processes on gloo give what one process gives; failures surface, and soon.

This process is one of the two ranks, so both sides are tested here; the other runs this file as a program.
"""

import itertools
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gs_propeller.distil.pull import Pull
from gs_propeller.scenes.gaussians.density import coast, distance, update
from gs_propeller.scenes.gaussians.state import Drift, Evaluation, Gaussians, State
from gs_propeller.solver.launcher import core_share, launch, share_cores, under_launcher
from gs_propeller.solver.picard import Problem, Settings, solve
from gs_propeller.solver.ranks import Compute, RankError, Ranks
from tests import toy_prior
from tests.loaded import Loaded
from tests.ports import world_of_two
from tests.toy_scene import ADAM, DENSITY, SEED, STEPS, compute, scene

pytestmark = pytest.mark.slow  # loads networks or starts processes all along

FAILS, DIES, HANGS, BREAKS = 1000, 1001, 1002, 1003  # steps at which the other rank's compute does so


def troubled(params: Sequence[Gaussians], steps: Sequence[int]) -> list[Evaluation]:
    if FAILS in steps:
        raise ArithmeticError(f"no good at step {FAILS}")
    if BREAKS in steps:
        raise FloatingPointError("step 1003: loss sds: the gradient of means is not finite")
    if DIES in steps:
        os.kill(os.getpid(), signal.SIGKILL)
    if HANGS in steps:
        time.sleep(60)
    return compute(params, steps)


PICTURES = {  # jobs by number, of the role that paints; a slow rank's answers come after everything else
    0: toy_prior.scene(16),
    1: toy_prior.scene(16, updates_per_evaluation=3),
    2: toy_prior.scene(16),
    3: replace(toy_prior.scene(16), batch_slots=4),
}


def painting(job: int) -> Compute:
    if job != 2:
        return PICTURES[job].compute

    def slow(params: Sequence[Gaussians], steps: Sequence[int]) -> Any:
        time.sleep(0.02)
        return PICTURES[job].compute(params, steps)

    return slow


def unprepared(job: int) -> Compute:
    raise OSError("cannot read photo.jpg here")


def working(compute: Compute, timeout_s: float = 120.0, **options: Any) -> Ranks:
    """This process at its one job; as rank 0 the other is told so."""
    ranks = Ranks(timeout_s=timeout_s, kinds=(Gaussians, Evaluation), **options)
    ranks.begin(0, compute)
    return ranks


def drifts(ranks: Ranks, states: Sequence[State], steps: Sequence[int]) -> list[Drift]:
    return list(ranks.evaluate(states, steps))


def run(ranks: Ranks, window: int, steps: int = 22, tail: str = "momentum", shuffled: bool = False) -> State:
    """shuffled: slots go to the ranks in another order at every pass; else they are told of ahead."""
    order = random.Random(0)

    def evaluate(states: Sequence[State], at: Sequence[int]) -> list[Drift]:
        slots = order.sample(range(len(states)), len(states))
        found = drifts(ranks, [states[j] for j in slots], [at[j] for j in slots])
        return [found[slots.index(j)] for j in range(len(states))]

    task = Problem(
        evaluate if shuffled else ranks.evaluate,
        partial(update, adam=ADAM, density=DENSITY, seed=SEED),
        partial(distance, seed=SEED),
        partial(coast, adam=ADAM, density=DENSITY, seed=SEED),
        expect=None if shuffled else ranks.expect,
    )
    return solve(task, Settings(steps, window, threshold=0.0, ema=1.0, tail=tail), scene(24)).states[0]


def painted(ranks: Ranks, job: int, window: int, tail: str = "momentum") -> State:
    from gs_propeller.app.asset import Logged, problem  # the other rank starts without it

    made = PICTURES[job]
    ranks.begin(job, made.compute)
    settings = Settings(made.steps, window, threshold=0.0, ema=1.0, tail=tail)
    return solve(problem(made, ranks, Logged()), settings, made.first()).states[0]


def same(one: State, other: State) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def program(role: str, path: str) -> None:
    """The other rank, or, under launch, each of them."""
    torch.set_num_threads(1)
    if role == "queue":
        return queue_of_two(path)
    kinds = (Gaussians, Pull if role == "paints" else Evaluation)
    if "READY" in os.environ:
        Path(os.environ["READY"]).touch()
    with Ranks(timeout_s=90.0, kinds=kinds) as ranks:
        if ranks.rank > 0:
            if role == "killed 1":
                os.kill(os.getpid(), signal.SIGKILL)
            if role == "unprepared":
                ranks.kinds = None
            ranks.serve({"paints": painting, "unprepared": unprepared}.get(role, lambda job: troubled))
            return
        ranks.begin(0, troubled)
        if role == "killed 0":
            os.kill(os.getpid(), signal.SIGKILL)
        if role == "bad input":
            sys.exit(2)
        if role == "vanishes":
            os._exit(1)
        if role == "interrupted":
            heard: list[int] = []
            signal.signal(signal.SIGINT, lambda sign, _: heard.append(sign))
            while not heard:
                drifts(ranks, [scene(5), scene(5)], [0, 1])
                Path(path).write_text("runs")
            time.sleep(0.5)  # for a signal too many
            drifts(ranks, [scene(5), scene(5)], [0, 1])  # the other rank must still be there
            Path(path).write_text(f"heard {len(heard)}")
            return
        torch.save(run(ranks, window=4).tensors(), path)


def queue_of_two(path: str) -> None:
    """One of four ranks in two groups; the first is done long before the other, and waits longer than the timeout."""
    from gs_propeller.app.config import Config
    from gs_propeller.app.job import work_off

    with Ranks(timeout_s=3.0, group=2) as ranks:
        if ranks.rank:
            return ranks.serve(lambda job: compute)

        def one(job: int) -> None:
            ranks.begin(job, compute)
            for _ in range(14 if ranks.first else 4):
                time.sleep(0.5)
                ranks._send(torch.zeros(3, dtype=torch.int64), 1)  # as `evaluate` does: rank 0 lives

        code = work_off([Config(), Config()], ranks, one)
        if not ranks.first:
            Path(path).write_text(f"code {code}")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before, handlers = (
        torch.get_num_threads(),
        {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)},
    )
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    for sign, handler in handlers.items():  # the launcher leaves its own
        signal.signal(sign, handler)


@contextmanager
def other_rank(
    rank: int, role: str, path: Path, patch: pytest.MonkeyPatch, program: str = __file__
) -> Iterator[Loaded]:
    """Start the other rank of two, and make this process the one that is left."""
    for name, value in (world_of_two() | {"RANK": str(1 - rank)}).items():
        patch.setenv(name, value)
    ready = path.with_name(f"{path.name}.ready")
    process = Loaded(program, [role, str(path)], os.environ | {"RANK": str(rank), "READY": str(ready)})
    try:
        until = time.monotonic() + 300
        while not ready.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)  # loading takes long on a busy machine, and is no part of any wait below
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows 1 and 4 in one process, 1 to 8 on two, slots in any order: one state, over splits, prunes, resets."""
    assert not under_launcher()
    with working(compute) as alone:
        serial, window = run(alone, 1, STEPS), run(alone, 4, STEPS)
        expected = drifts(alone, [scene(9), scene(7), scene(5)], [3, 1, 2])
    assert same(serial, window)
    with other_rank(1, "serves", tmp_path, monkeypatch) as process, working(compute) as ranks:
        assert under_launcher() and (ranks.rank, ranks.world) == (0, 2)
        for rollout, at_once, tail, width in (
            ("shared", 1, "copy", 2),
            ("own", 1, "momentum", 8),
            ("own", 3, "copy", 5),
            ("auto", 3, "momentum", 5),
        ):
            ranks.deal.rollout, ranks.deal.at_once = rollout, at_once
            assert same(run(ranks, width, STEPS, tail), serial), f"window {width}, tail {tail}, {rollout}"
        ranks.deal.rollout, ranks.deal.at_once = "shared", 1
        assert same(run(ranks, 1, STEPS), serial)
        assert same(run(ranks, 5, STEPS, shuffled=True), serial)
        ranks.deal.seed = 5  # at random, as ranks that learn have it
        assert same(run(ranks, 5, STEPS), serial)
        ranks.deal.seed = None
        # fewer slots than ranks, and states of different sizes
        found = drifts(ranks, [scene(9)], [3]) + drifts(ranks, [scene(7), scene(5)], [1, 2])
        for drift, twin in zip(found, expected, strict=True):
            assert torch.equal(drift.grads.pack(), twin.grads.pack())
            assert torch.equal(drift.stats.grad2d, twin.stats.grad2d)
            assert torch.equal(drift.stats.radii, twin.stats.radii) and torch.equal(
                drift.stats.seen, twin.stats.seen
            )
            assert torch.equal(drift.losses, twin.losses) and torch.equal(drift.lineage, twin.lineage)
        ranks.close()
        assert process.wait(timeout=90) == 0


@pytest.mark.slow
def test_pictures_on_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulls travel, one or three updates each, several slots in one call, and from a rank that is always late: the
    serial run's bits."""
    with Ranks() as alone:
        serial = {job: painted(alone, job, 1) for job in PICTURES}
    with (
        other_rank(1, "paints", tmp_path, monkeypatch),
        Ranks(timeout_s=120.0, kinds=(Gaussians, Pull)) as ranks,
    ):
        for rollout, tail, width in (("shared", "copy", 3), ("own", "momentum", 8)):
            ranks.deal.rollout = rollout
            for job, expected in serial.items():
                ranks.deal.at_once = PICTURES[job].batch_slots
                assert same(painted(ranks, job, width, tail), expected), (
                    f"job {job}, window {width}, {rollout}"
                )


def test_what_was_told_ahead_and_is_not_wanted_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told of other states, of more, of fewer or of the very ones: the drifts are those of what is asked."""
    states = [scene(n) for n in (9, 8, 7, 6, 5)]
    twins = [x.grads.pack() for x in compute([s.params for s in states], range(5))]
    taken: list[int] = []

    def counted(params: Sequence[Gaussians], steps: Sequence[int]) -> list[Evaluation]:
        taken.append(len(steps))
        return compute(params, steps)

    with other_rank(1, "serves", tmp_path, monkeypatch), working(counted, at_once=8) as ranks:
        ranks.deal.rollout = "shared"
        for width, own in (
            (5, [2]),
            (3, [1]),
            (1, []),
        ):  # both ranks have work, though one call could hold it all
            ranks.deal.turns = itertools.count()
            taken.clear()
            drifts(ranks, states[:width], range(width))
            assert taken == own, width
        for rollout, at_once in (("shared", 1), ("own", 1), ("shared", 2), ("own", 3)):
            ranks.deal.rollout, ranks.deal.at_once = rollout, at_once
            for told in ([], [0, 1, 2], [0, 1, 2, 3, 4], [1, 2], [0, 2], [4, 3, 2, 1, 0]):
                for j in told:
                    ranks.expect(states[j], j)
                found = drifts(ranks, states[:3], range(3))
                assert all(torch.equal(a.grads.pack(), b) for a, b in zip(found, twins, strict=False))
                assert not ranks.deal.groups
            # told while a pass is under way, as the solver does
            for k, drift in enumerate(ranks.evaluate(states[:3], range(3))):
                assert torch.equal(drift.grads.pack(), twins[k])
                if k:
                    ranks.expect(states[k + 1], k + 1)
            ranks.expect(states[4], 4)
            found = drifts(ranks, states[2:], range(2, 5))
            assert all(torch.equal(a.grads.pack(), b) for a, b in zip(found, twins[2:], strict=True))


def test_failures_surface_and_leave_the_ranks_in_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [scene(6), scene(5), scene(4), scene(4), scene(5)]
    twin = compute([state.params for state in states[:3]], [0, 1, 2])

    def in_step(ranks: Ranks) -> None:
        again = drifts(ranks, states[:3], [0, 1, 2])
        assert all(torch.equal(a.grads.pack(), b.grads.pack()) for a, b in zip(again, twin, strict=True))

    with (
        other_rank(1, "serves", tmp_path, monkeypatch) as process,
        working(troubled, rollout="shared") as ranks,
    ):

        def at(step: int, rank: int) -> list[int]:
            """Steps of five slots, this one with that rank, which has others before or after it."""
            ranks.deal.turns = itertools.count()  # the first slot goes to rank 1, the next to rank 0
            return [10, 11, step, 13, 14] if rank else [10, step, 12, 13, 14]

        with pytest.raises(RankError, match="rank 1 of 2 failed") as error:
            drifts(ranks, states, at(FAILS, 1))
        assert "ArithmeticError: no good at step 1000" in str(error.value)
        assert 'raise ArithmeticError(f"no good' in str(error.value)  # the worker's own traceback
        in_step(ranks)
        with pytest.raises(ArithmeticError, match="no good"):
            drifts(ranks, states, at(FAILS, 0))
        in_step(ranks)
        with pytest.raises(
            FloatingPointError, match=r"^rank 1 of 2: step 1003: loss sds: the gradient"
        ) as broken:
            drifts(ranks, states, at(BREAKS, 1))
        assert "Traceback" not in str(broken.value)
        in_step(ranks)
        # the solver's own failure, with answers under way and slots told of ahead, one of which fails
        with pytest.raises(ZeroDivisionError):
            for k, _ in enumerate(ranks.evaluate(states, at(12, 1))):
                ranks.expect(states[0], FAILS if k == 1 else 20 + k)
                if k == 2:
                    raise ZeroDivisionError
        ranks.begin(1, troubled)
        in_step(ranks)
        for k, _ in enumerate(ranks.evaluate(states, at(12, 1))):
            if k == 1:
                break  # left as it stands
        ranks.expect(states[0], FAILS)
        ranks.begin(2, troubled)
        in_step(ranks)
        begin = time.monotonic()
        with pytest.raises(RankError, match="rank 1 was lost"):
            drifts(ranks, states, at(DIES, 1))
        ranks.close()
        assert time.monotonic() - begin < 60  # half the timeout: noticed, not waited for
        assert process.wait(timeout=90) == -signal.SIGKILL


@pytest.mark.slow
def test_a_silent_rank_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With answers asked for behind the one that never comes; leaving does not wait for them again."""
    begin = math.inf
    with other_rank(1, "serves", tmp_path, monkeypatch), working(troubled, 8.0, rollout="own") as ranks:
        drifts(ranks, [scene(5), scene(5)], [0, 1])
        begin = time.monotonic()
        with pytest.raises(RankError, match=r"rank 1 was lost.*silent for longer than the timeout"):
            drifts(ranks, [scene(5)] * 4, [0, HANGS, 2, 3])
        assert 6 < time.monotonic() - begin < 30
        begin = time.monotonic()
        ranks.close()
        assert time.monotonic() - begin < 6


@pytest.mark.slow
def test_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as rank 1: it serves to the end, deaf to Ctrl-C, and then hears again."""
    path, handler = tmp_path / "state.pt", signal.getsignal(signal.SIGINT)

    def interrupted(params: Sequence[Gaussians], steps: Sequence[int]) -> list[Evaluation]:
        signal.raise_signal(signal.SIGINT)
        return compute(params, steps)

    with other_rank(0, "asks", path, monkeypatch) as process:
        with Ranks(timeout_s=120.0, kinds=(Gaussians, Evaluation)) as ranks:
            ranks.serve(lambda job: interrupted)
        assert process.wait(timeout=90) == 0
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    assert same(State.from_tensors(torch.load(path)), run(working(compute), 4))


@pytest.mark.slow
def test_serving_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure goes to rank 0, which ends; so does serving."""

    def failing(params: Sequence[Gaussians], steps: Sequence[int]) -> list[Evaluation]:
        raise ArithmeticError("never any good")

    with other_rank(0, "asks", tmp_path / "none.pt", monkeypatch) as process:
        with Ranks(timeout_s=120.0, kinds=(Gaussians, Evaluation)) as ranks:
            ranks.serve(lambda job: failing)
        assert process.wait(timeout=90) == 1


@pytest.mark.slow
def test_losing_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        other_rank(0, "vanishes", tmp_path, monkeypatch),
        pytest.raises(RankError, match="rank 0 was lost"),
        Ranks(timeout_s=120.0, kinds=(Gaussians, Evaluation)) as ranks,
    ):
        ranks.serve(lambda job: compute)


@pytest.fixture
def path_for_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """launch changes the environment for good, as it may before a process that only waits; not so here."""
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))


@pytest.mark.slow
@pytest.mark.usefixtures("path_for_ranks")
def test_launch(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    assert launch([__file__, "asks", str(path)], ranks=2, threads=1) == 0
    assert same(State.from_tensors(torch.load(path)), run(working(compute), 1))
    assert launch([__file__, "bad input", ""], ranks=2, threads=1) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("path_for_ranks")
@pytest.mark.parametrize("rank", [0, 1])
def test_launch_names_the_rank_that_died(rank: int, tmp_path: Path) -> None:
    with pytest.raises(RankError, match=rf"rank {rank} of 2 died: killed \(signal 9\).*fewer ranks"):
        launch([__file__, f"killed {rank}", str(tmp_path / "none.pt")], ranks=2, threads=1)


@pytest.mark.slow
@pytest.mark.usefixtures("path_for_ranks")
def test_interrupt_reaches_rank_0_once_and_no_rank_dies_of_it(tmp_path: Path) -> None:
    path = tmp_path / "heard"
    argv = [__file__, "interrupted", str(path)]
    call = f"from gs_propeller.solver.launcher import launch; raise SystemExit(launch({argv}, ranks=2, threads=1))"
    process = subprocess.Popen([sys.executable, "-c", call])
    try:
        until = time.monotonic() + 60
        while not (path.exists() and path.read_text() == "runs") and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 128 + signal.SIGINT
    finally:
        process.kill()
    assert path.read_text() == "heard 1"


@pytest.mark.slow
@pytest.mark.usefixtures("path_for_ranks")
def test_a_group_with_nothing_left_outlives_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "code"
    assert launch([__file__, "queue", str(path)], ranks=4, threads=1) == 0
    assert path.read_text() == "code 0"


@pytest.mark.slow
def test_what_preparing_raises_reaches_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a rank's first job, of which it does not even know what travels."""
    with (
        other_rank(1, "unprepared", tmp_path, monkeypatch),
        working(compute, rollout="shared") as ranks,
        pytest.raises(RankError, match=r"cannot read photo\.jpg here"),
    ):
        drifts(ranks, [scene(5), scene(5)], [0, 1])


def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert [core_share(ranks) for ranks in (1, 5, 12, 40)] == [12, 2, 1, 1]
    assert share_cores(6) == 2 and torch.get_num_threads() == 2
    assert share_cores(6, threads=1) == 1 and torch.get_num_threads() == 1


def test_refuses_another_rollout() -> None:
    with pytest.raises(ValueError, match="one of auto, shared, own, got 'alone'"):
        Ranks(rollout="alone")


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_refuses_no_timeout(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s must be above 0"):
        Ranks(timeout_s=timeout_s)


if __name__ == "__main__":
    program(sys.argv[1], sys.argv[2])
