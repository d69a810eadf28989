"""One picture in, one textured 3D asset out: score distillation on Gaussians, parallel in time.

    python main_propeller.py --config configs/image.yaml input=data/cat.png

Read downwards: arguments, load, solve, mesh, save. `torchrun main_propeller.py ...` spans machines.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gs_propeller import checkpoint
from gs_propeller.asset import (
    RollOut,
    Viewer,
    distillation,
    first_state,
    input_of,
    problem,
    solver_settings,
    textured_mesh,
)
from gs_propeller.config import Config, load, to_yaml
from gs_propeller.devices import device_of, precision_of, rank_count
from gs_propeller.errors import UserError
from gs_propeller.gaussians import Drift, State
from gs_propeller.io import atomic, save_glb, save_obj, save_ply
from gs_propeller.log import Metrics, Progress, quiet_libraries, show_help, summary
from gs_propeller.losses import LOSSES, Distillation
from gs_propeller.media import contact_sheet, turntable
from gs_propeller.picard import Report, Window, resume, solve
from gs_propeller.picture import Picture, load_picture
from gs_propeller.ranks import RankError, Ranks, launch, share_cores, under_launcher
from gs_propeller.raster_cpu import set_threads
from gs_propeller.texture import Textured
from guidance import find_prior

INTERRUPTED = 130


class Interrupted(Exception):
    """Ctrl-C or TERM: the checkpoint is written."""


@dataclass(frozen=True)
class Asset:
    """What a run gives back: the solution's state, its viewer, the textured mesh, and every file by name."""

    state: State
    viewer: Viewer
    textured: Textured
    files: dict[str, Path]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code.

    0: done; 2: bad input; 3: a rank was lost, or a gradient was not finite; 130: Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        config, flags = load(words)
        if flags.help:
            show_help("main_propeller.py")
        elif flags.dry_run:
            print(to_yaml(config), end="")
        elif under_launcher() or rank_count(config) == 1:
            make_asset(config)
        else:
            load_picture(input_of(config))  # what is wrong with the input is said once, not by every rank
            find_prior(config.prior)
            return launch([str(Path(__file__).resolve()), *words], rank_count(config), config.threads)
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except (RankError, FloatingPointError) as error:
        print(
            f"error: {error}\nthe last checkpoint is kept: the same command goes on from it", file=sys.stderr
        )
        return 3
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return INTERRUPTED
    return 0


def make_asset(config: Config, quiet: bool = False) -> Asset:
    """The whole job for one picture, on this process's rank. Raises UserError.

    Rank 0 returns the asset, its files written to config.run_folder. The other ranks of a launch work until
    rank 0 has no more to ask, and end there (SystemExit).
    """
    begun_s = time.monotonic()
    picture = load_picture(input_of(config))
    quiet_libraries()
    from guidance.zero123 import Zero123  # takes seconds: after what may be wrong with the input

    device = device_of(config)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    set_threads(share_cores(local, config.threads))
    prior = Zero123(find_prior(config.prior), device, precision_of(config, device))
    task = distillation(config, picture, prior)
    say = None if quiet else sys.stderr

    with Ranks(task.compute, device, config.timeout_s) as ranks:
        if ranks.rank > 0:
            ranks.serve()
            raise SystemExit(0)
        if say and picture.note:
            print(f"note: {picture.note}", file=say)
        with checkpoint.lock(config.run_folder):
            window, seconds = _solve(config, ranks, task, Path(config.input).read_bytes(), quiet)
            ranks.close()  # the others need not wait for the mesh
            return _save(config, window, picture, time.monotonic() - begun_s, seconds, quiet)


def _solve(
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


def _save(
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


if __name__ == "__main__":
    sys.exit(main())
