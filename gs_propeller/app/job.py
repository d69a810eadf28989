"""Jobs: one for each picture, or for the prompt, in a queue for the groups of ranks; and one of them on the ranks of a
group: solve, going on from a checkpoint, then mesh, texture and files."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from gs_propeller.app.asset import Logged, Viewer, begun, problem, textured_mesh
from gs_propeller.app.config import Config, to_yaml
from gs_propeller.app.events import Audience, FilesWritten, How, PassDone, StageBegun, StageEnded
from gs_propeller.app.fingerprint import FILES, fingerprint, given_bytes, options_of
from gs_propeller.app.guides import find_priors
from gs_propeller.app.kinds.choice import kind_of
from gs_propeller.app.log import Metrics
from gs_propeller.app.plan import stages_of
from gs_propeller.base.errors import Interrupted, UserError
from gs_propeller.base.files import atomic, save_tensors
from gs_propeller.base.media import contact_sheet, turntable
from gs_propeller.base.names import told_apart
from gs_propeller.distil.phases import Distilled
from gs_propeller.mesh.io import save_glb, save_obj
from gs_propeller.mesh.texture import Textured
from gs_propeller.pictures.picture import Picture, passed_over, picture_files
from gs_propeller.scenes.gaussians.compressed import save_compressed
from gs_propeller.scenes.gaussians.ply import save_ply
from gs_propeller.scenes.gaussians.state import Gaussians
from gs_propeller.solver import checkpoint
from gs_propeller.solver.picard import Problem, Report, Settings, Window, resume, solve
from gs_propeller.solver.ranks import Ranks

S = TypeVar("S", bound=Any)  # a state: it has tensors() and to(device)
D = TypeVar("D")


@dataclass(frozen=True)
class Asset:
    """What a run gives back: its last state, closing updates done, viewer, textured mesh, and every file by name."""

    state: Any
    viewer: Viewer
    textured: Textured
    files: dict[str, Path]


@dataclass(frozen=True)
class Stage(Generic[S, D]):
    """One run of the solver in a folder: what is integrated and how, and under which names it is kept and shown.

    first() -> the state of step 0. mark: what a checkpoint must have been made with. read: a state from a checkpoint's
    tensors. losses: names of the [L] that logged gives for each step of a report. rows: of a state, for the log.
    draw(state, azimuths_deg [V], S) -> [V, 3, S, S] in 0..1, on the CPU. every: updates that a step of the solver
    stands for. updates: of all steps, 0: as many as they stand for. counted: what it is that rows counts. keeps:
    snapshots; None: its states are none.
    """

    title: str
    problem: Problem[S, D]
    settings: Settings
    first: Callable[[], S]
    mark: str
    read: Callable[[dict[str, Tensor]], S]
    losses: Sequence[str]
    logged: Callable[[Report[D]], list[Tensor]]
    rows: Callable[[S], int]
    draw: Callable[[S, Sequence[float], int], Tensor]
    checkpoint: str = checkpoint.FILE
    metrics: str = "metrics.jsonl"
    options: str = "config.yaml"
    every: int = 1
    updates: int = 0
    counted: str = "N"
    keeps: int | None = None

    def done(self, start: int) -> int:
        """Updates before a step of the solver; the last may stand for fewer."""
        return min(start * self.every, self.updates or self.every * self.settings.steps)


def jobs_of(config: Config, announce: bool = False) -> list[Config]:
    """A configuration for each picture, or for the prompt. announce: say on stderr what a folder holds besides. Raises
    UserError."""
    find_priors(config)
    if not config.input:
        return [config]
    files, others = picture_files(config.input), passed_over(config.input)
    if announce and others and int(os.environ.get("RANK", 0)) == 0:
        print(f"note: passed over in {config.input}: {', '.join(others)}", file=sys.stderr)
    if len(files) == 1:
        return [config.but(input=files[0])]
    if config.mesh:
        raise UserError(
            f"mesh={config.mesh} is one mesh, but input={config.input} means {len(files)} pictures"
        )
    prefix = f"{config.name}-" if config.name else ""
    names = told_apart(files)
    return [config.but(input=file, name=prefix + name) for file, name in zip(files, names, strict=True)]


def work_off(jobs: Sequence[Config], ranks: Ranks, one: Callable[[int], None]) -> int:
    """one(index) for every job that this group of ranks claims, on its rank 0; the exit code. What cannot be used among
    several is named and skipped."""
    skipped = 0
    while (index := ranks.claim()) < len(jobs):
        try:
            one(index)
        except (UserError, FloatingPointError) as error:
            if len(jobs) == 1:
                raise
            print(f"skipped {jobs[index].input}: {error}", file=sys.stderr)
            skipped += 1
    ranks.close()  # the group's others would take the wait for the other groups for a death
    return 2 if ranks.all_done(skipped) else 0


def distilling(config: Config, ranks: Ranks, scene: Distilled, given: bytes) -> Stage[Any, Any]:
    """The first stage. given: the picture's bytes, none for a prompt alone."""
    logged = Logged()
    return Stage(
        "distil",
        problem(scene, ranks, logged),
        replace(config.sections.solver, steps=scene.steps).among(ranks.world),
        partial(begun, config, scene),
        fingerprint(config, given),
        kind_of(config).read,
        scene.losses,
        logged.rows,
        lambda state: len(state.params),
        lambda state, azimuths, size: Viewer(state.params, config).around(azimuths, size),
        every=scene.settings.updates_per_evaluation,
        updates=scene.updates,
        counted=kind_of(config).size,
        keeps=config.snapshots,
    )


def snapshots(folder: Path) -> dict[int, Path]:
    """A run's, by the updates done."""
    files = (folder / "snapshots").glob("[0-9]*.safetensors")
    return {int(file.stem): file for file in sorted(files)}


class Snapshots:
    """Parameters on the way, evenly spread over the run, as FOLDER/snapshots/STEP.safetensors; those past `done`, where
    a run goes on from, are another's and go."""

    def __init__(self, folder: Path, count: int, done: int, steps: int) -> None:
        self.folder, self.count, self.steps = folder / "snapshots", count, steps
        self.kept = done * count // steps
        for torn in self.folder.glob(".*.safetensors"):  # of a kill while it was written
            torn.unlink()
        for step, file in snapshots(folder).items():
            if step > done:
                file.unlink()

    def pass_by(self, step: int, params: Any) -> None:
        if step * self.count // self.steps > self.kept:
            self.kept = step * self.count // self.steps
            save_tensors(self.folder / f"{step:06d}.safetensors", dict(params.items()), {})


class Enough(Exception):
    """Whoever listens wants the asset as it is now."""


def solved(
    config: Config, stage: Stage[S, D], device: torch.device, audience: Audience
) -> tuple[Window[S], float]:
    """(the last window, seconds spent in the loop), going on from the folder's checkpoint where there is one; the
    window is not at its end where the audience wanted it to stop. Raises Interrupted for Ctrl-C and TERM."""
    folder, settings, task = config.run_folder, stage.settings, stage.problem
    file = folder / stage.checkpoint
    found = checkpoint.restore(file, stage.mark, stage.read) if config.resume else None
    window, spent_s = found or (Window((stage.first(),), 0, settings.threshold), 0.0)
    with atomic(folder / stage.options) as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")
    states = [state.to(device) for state in window.states]
    window = resume(states, window.start, window.threshold, task, settings, window.passes, window.evaluations)
    metrics = Metrics(folder / stage.metrics, stage.done(window.start))
    begun_s = saved_s = time.monotonic()
    steps = stage.done(settings.steps)
    begin = stage.done(window.start)
    snapshots = None if stage.keeps is None else Snapshots(folder, stage.keeps, begin, steps)
    audience.tell(StageBegun(stage.title, begin, steps))
    with checkpoint.interrupts() as stop:

        def on_pass(now: Window[S], report: Report[D]) -> None:
            nonlocal saved_s, window
            window = now
            elapsed_s = spent_s + time.monotonic() - begun_s
            shown = metrics.write_pass(
                report,
                stage.logged(report),
                stage.losses,
                now.passes,
                stage.rows(now.states[0]),
                elapsed_s,
                stage.every,
                stage.counted,
            )
            if snapshots is not None:
                snapshots.pass_by(stage.done(now.start), now.states[0].params)
            audience.tell(
                PassDone(
                    stage.title, stage.done(now.start), steps, now.passes, report.accepted, report.slots, elapsed_s,
                    shown, partial(stage.draw, now.states[0]),
                )
            )  # fmt: skip
            if stop.asked or time.monotonic() - saved_s > config.checkpoint_every_s:
                checkpoint.save(file, now, stage.mark, elapsed_s)
                saved_s = time.monotonic()
            if stop.asked:
                raise Interrupted(
                    f"stopped at step {stage.done(now.start)}; {_again(config)} goes on from there"
                )
            if audience.stop.is_set() and now.start < settings.steps:
                raise Enough

        how: How = "broken off"
        try:
            solve(task, settings, window, on_pass)
            how = "finished"
        except Enough:
            how = "stopped"
        finally:
            metrics.close()
            audience.tell(StageEnded(stage.title, stage.done(window.start), steps, how))
    if how == "stopped":
        audience.note(
            f"stopped at step {stage.done(window.start)} of {steps}, as was asked: the files are of that moment, and "
            f"{_again(config)} goes on from there"
        )
    if metrics.skipped:
        audience.note(
            f"{metrics.skipped} of {settings.steps} evaluations were skipped, since their gradient was not finite"
            " (nonfinite=skip); where they are many, precision=bfloat16 or float32 has none"
        )
    spent_s += time.monotonic() - begun_s
    checkpoint.save(file, window, stage.mark, spent_s)
    return window, spent_s


def _again(config: Config) -> str:
    return "the same command" if config.resume else "the same command without resume=false"


def finished(config: Config) -> bool:
    """Whether the folder holds this very job's asset already, every file of it, by the same options. Raises UserError
    for another job's checkpoint."""
    last = config.run_folder / checkpoint.FILE
    if not solved_before(config) or (own := options_of(config)) is None:
        return False
    marks = [fingerprint(c, b"", also=FILES) for c in (config, own)]
    made_s = [file.stat().st_mtime if file.is_file() else 0.0 for file in result_files(config).values()]
    return marks[0] == marks[1] and min(made_s) >= last.stat().st_mtime


def result_files(config: Config) -> dict[str, Path]:
    """Every file of an asset, by its kind."""
    folder, name = config.run_folder, config.run_name
    kinds = ["obj", "glb", *(["mp4"] if config.turntable_frames else [])]
    if stages_of(config)[-1].scene == "gaussians":
        kinds = ["ply", *([config.compressed] if config.compressed != "none" else []), *kinds]
    files = {kind: folder / f"{name}.{kind}" for kind in kinds}
    return files | {"png": folder / f"{name}_sheet.png"}  # NAME.png is the texture of NAME.obj


def solved_before(config: Config) -> bool:
    """Whether the folder holds this very job's last state. Raises UserError for another job's checkpoint."""
    mark = fingerprint(config, given_bytes(config))
    file = config.run_folder / checkpoint.FILE
    found = checkpoint.restore(file, mark, kind_of(config).read) if config.resume else None
    return found is not None and found[0].start == -(-config.steps // config.updates_per_evaluation)


def saved(
    config: Config,
    window: Window[Any],
    shown: Any,
    picture: Picture | None,
    total_s: float,
    solve_s: float,
    audience: Audience,
) -> Asset:
    """Mesh, texture and every file of the asset. shown: its state as splat, sheet and film have it; the mesh is that of
    the run's last state, which is smoother and whose texture has the picture itself."""
    begun_s = time.monotonic()
    name, viewer = config.run_name, Viewer(shown.params, config)
    files = result_files(config)
    if isinstance(viewer.params, Gaussians):
        save_ply(files["ply"], viewer.params)
        if config.compressed != "none":
            save_compressed(files[config.compressed], viewer.params)
    textured = textured_mesh(Viewer(window.states[0].params, config), picture)
    save_obj(files["obj"], textured)
    save_glb(files["glb"], textured)
    contact_sheet(files["png"], viewer.turntable(8, config.turntable_size))
    if config.turntable_frames:
        turntable(files["mp4"], viewer.turntable(config.turntable_frames, config.turntable_size), config.fps)
    mesh_s = time.monotonic() - begun_s
    facts = [
        (
            "steps",
            f"{window.states[0].step} in {window.passes} passes, {window.evaluations} evaluations",
        ),
        (kind_of(config).size, f"{len(viewer.params)}"),
        ("mesh", f"{len(textured.mesh.faces)} faces"),
        (
            "time",
            f"{solve_s:.0f} s solving, {mesh_s:.0f} s mesh and files, {total_s + mesh_s:.0f} s in this call",
        ),
    ]
    audience.tell(FilesWritten(f"{name}: done", files, facts))
    return Asset(shown, viewer, textured, files)
