"""One picture's job on the ranks of a group: solve, going on from a checkpoint, then mesh, texture and files."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gs_propeller import checkpoint
from gs_propeller.asset import RollOut, Viewer, first_state, problem, solver_settings, textured_mesh
from gs_propeller.config import Config, to_yaml
from gs_propeller.gaussians import Drift, State
from gs_propeller.io import atomic, save_glb, save_obj, save_ply
from gs_propeller.log import Metrics, Progress, summary
from gs_propeller.losses import LOSSES, Distillation
from gs_propeller.media import contact_sheet, turntable
from gs_propeller.picard import Report, Window, resume, solve
from gs_propeller.picture import Picture
from gs_propeller.ranks import Ranks
from gs_propeller.texture import Textured


class Interrupted(Exception):
    """Ctrl-C or TERM: the checkpoint is written."""


@dataclass(frozen=True)
class Asset:
    """What a run gives back: the solution's state, its viewer, the textured mesh, and every file by name."""

    state: State
    viewer: Viewer
    textured: Textured
    files: dict[str, Path]


def solved(
    config: Config, ranks: Ranks, distil: Distillation, picture: bytes, quiet: bool
) -> tuple[Window[State], float]:
    """(the last window, seconds spent in the loop), going on from the folder's checkpoint where there is one."""
    folder, settings, device = config.run_folder, solver_settings(config, ranks.world), ranks.device
    roll_out = RollOut(config, distil)
    task = problem(config, ranks, roll_out)
    mark = checkpoint.fingerprint(config, picture)
    found = checkpoint.restore(folder, mark) if config.resume else None
    window, spent_s = found or (Window((first_state(config, device),), 0, settings.threshold), 0.0)
    with atomic(folder / "config.yaml") as temporary:
        temporary.write_text(to_yaml(config))
    states = [state.to(device) for state in window.states]
    window = resume(states, window.start, window.threshold, task, settings, window.passes, window.evaluations)
    metrics = Metrics(folder / "metrics.jsonl", window.start)
    begun_s = saved_s = time.monotonic()
    stream = None if quiet else sys.stderr
    with (
        checkpoint.interrupts() as stop,
        Progress("distil", settings.steps, window.start, stream) as progress,
    ):

        def on_pass(now: Window[State], report: Report[Drift]) -> None:
            nonlocal saved_s
            elapsed_s = spent_s + time.monotonic() - begun_s
            shown = metrics.write_pass(
                report, roll_out.logged(report), LOSSES, now.passes, len(now.states[0]), elapsed_s
            )
            progress.update(now.start, **shown)
            if stop.asked or time.monotonic() - saved_s > config.checkpoint_every_s:
                checkpoint.save(folder, now, mark, elapsed_s)
                saved_s = time.monotonic()
            if stop.asked:
                raise Interrupted(f"stopped at step {now.start}; the same command goes on from there")

        try:
            window = solve(task, settings, window, on_pass)
        finally:
            metrics.close()
    spent_s += time.monotonic() - begun_s
    checkpoint.save(folder, window, mark, spent_s)
    return window, spent_s


def finished(config: Config) -> bool:
    """Whether the folder holds this very job's asset already. Raises UserError for another job's checkpoint."""
    mark = checkpoint.fingerprint(config, Path(config.input).read_bytes())
    found = checkpoint.restore(config.run_folder, mark) if config.resume else None
    mesh = config.run_folder / f"{config.run_name}.glb"
    last = config.run_folder / checkpoint.FILE
    done = found is not None and found[0].start == config.steps
    return done and mesh.exists() and mesh.stat().st_mtime >= last.stat().st_mtime


def saved(
    config: Config, window: Window[State], picture: Picture, total_s: float, solve_s: float, quiet: bool
) -> Asset:
    """Mesh, texture and every file of the asset."""
    begun_s = time.monotonic()
    folder, name = config.run_folder, config.run_name
    viewer = Viewer(window.states[0].params, config)
    files = {kind: folder / f"{name}.{kind}" for kind in ("ply", "obj", "glb", "png")}
    files["png"] = folder / f"{name}_sheet.png"  # NAME.png is the texture of NAME.obj
    save_ply(files["ply"], viewer.gaussians)
    textured = textured_mesh(viewer, picture)
    save_obj(files["obj"], textured)
    save_glb(files["glb"], textured)
    contact_sheet(files["png"], viewer.turntable(8, config.turntable_size))
    if config.turntable_frames:
        files["mp4"] = folder / f"{name}.mp4"
        turntable(files["mp4"], viewer.turntable(config.turntable_frames, config.turntable_size), config.fps)
    if not quiet:
        mesh_s = time.monotonic() - begun_s
        rows = [
            ("steps", f"{window.start} in {window.passes} passes, {window.evaluations} evaluations"),
            ("Gaussians", f"{len(viewer.gaussians)}"),
            ("mesh", f"{len(textured.mesh.faces)} faces"),
            (
                "time",
                f"{solve_s:.0f} s solving, {mesh_s:.0f} s mesh and files, {total_s + mesh_s:.0f} s in this call",
            ),
        ]
        summary(f"{name}: done", rows + [(kind, str(path)) for kind, path in files.items()])
    return Asset(window.states[0], viewer, textured, files)
