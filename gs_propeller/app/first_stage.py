"""The first stage on this process's ranks: for each asset solve, mesh, save."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from gs_propeller.app.asset import Viewer, check_seed, scene_of, slots_at_once, travellers
from gs_propeller.app.config import Config
from gs_propeller.app.devices import device_of, group_size, rank_count, scene_device
from gs_propeller.app.elevation import note_of, noted, placed
from gs_propeller.app.events import NOBODY, Audience, CutOut
from gs_propeller.app.fingerprint import fingerprint, given_bytes
from gs_propeller.app.guides import Priors, fetch_priors, keep, load_priors, notes, picture_of
from gs_propeller.app.job import (
    Asset,
    distilling,
    finished,
    jobs_of,
    result_files,
    saved,
    solved,
    solved_before,
    work_off,
)
from gs_propeller.app.kinds.choice import kind_of
from gs_propeller.app.log import quiet_libraries, said_if_long
from gs_propeller.app.plan import in_vain, stages_of
from gs_propeller.base.errors import UserError
from gs_propeller.base.media import contact_sheet
from gs_propeller.base.threads import set_threads
from gs_propeller.distil.phases import Distilled
from gs_propeller.pictures.picture import save_picture
from gs_propeller.scenes.gaussians.compressed import check_installed
from gs_propeller.solver import checkpoint
from gs_propeller.solver.launcher import share_cores
from gs_propeller.solver.ranks import Compute, Ranks


def checked(config: Config) -> None:
    """What is wrong with the input is said once, not by every rank. Raises UserError."""
    _checked_plan(config)
    jobs = jobs_of(config)
    group_size(config, rank_count(config), len(jobs))
    if len(jobs) == 1:
        picture_of(jobs[0])
        spared(jobs[0])
    fetch_priors(config)


def spared(config: Config) -> None:
    """Raises UserError where the run would write over its own input picture."""
    own = [
        *result_files(config).values(),
        *(config.run_folder / f"{config.run_name}{x}.png" for x in ("", "_input")),
    ]
    if config.input and Path(config.input).resolve() in [file.resolve() for file in own]:
        raise UserError(
            f"input={config.input} would be written over by its own run in {config.run_folder}; give another outdir= "
            "or name="
        )


def _checked_plan(config: Config) -> None:
    """Raises UserError for stages, what is shown, a seed or a copy that cannot be."""
    if config.mesh:
        raise UserError(
            f"mesh={config.mesh} is for main2_mesh.py (propeller-mesh), which refines one; this makes one from a "
            "picture or a sentence"
        )
    stages = stages_of(config)
    scene = stages[-1].scene
    if config.compressed != "none" and scene != "gaussians":
        raise UserError(
            f"compressed={config.compressed} holds Gaussians and scene={scene} has none; leave one of them out"
        )
    check_installed(config.compressed)
    for stage in stages:
        if stage.scene != "tetrahedra" and stage.shows != "colours":
            raise UserError(
                f"shows={stage.shows} is of tetrahedra, and scene={stage.scene} shows colours; give it to a stage of "
                "scene=tetrahedra, or leave it out"
            )
    if config.init:
        check_seed(config)


def make_assets(
    jobs: Sequence[Config],
    audience: Audience,
    assets: list[Asset] | None = None,
    priors: Priors | None = None,
) -> int:
    """Every job, by groups of ranks from one queue; the exit code. A bad picture among several is skipped. priors:
    loaded already, on the device that the jobs mean; those of a loss=vsd have learnt, and serve once."""
    begun_s, config = time.monotonic(), jobs[0]
    early = NOBODY if int(os.environ.get("RANK", 0)) else audience  # what concerns all groups is said once
    _checked_plan(config)
    if len(jobs) == 1:
        picture_of(config)  # before the seconds that loading takes
    quiet_libraries()
    device = device_of(config, say=early.note)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    set_threads(share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), config.threads))
    priors = priors or load_priors(config, device, early.prior_found)
    device, stages = scene_device(device), stages_of(config)
    if device.type == "cpu":  # before the loop: compiling is no part of its pace
        with said_if_long("compiling the CPU's kernels, once on this machine: a minute or so", early.note):
            for stage in stages:
                kind_of(stage).warm()

    learnt: list[Distilled] = []

    def prepared(number: int) -> Compute:
        for earlier in learnt:
            keep(earlier.guides)
        job, place = divmod(number, len(stages))
        stage = stages_of(noted(jobs[job], ranks.note))[place]
        learnt[:] = [scene_of(stage, picture_of(stage), priors)]
        _turned(ranks, stage)
        return learnt[0].compute

    def one(index: int) -> None:
        nonlocal begun_s
        asset = _one(jobs[index], index, len(jobs), ranks, priors, begun_s, audience)
        if assets is not None and asset is not None:
            assets.append(asset)
        begun_s = time.monotonic()

    group = group_size(config, processes, len(jobs))
    with Ranks(device, config.timeout_s, group, rollout=config.rollout_device) as ranks:
        if ranks.rank > 0:
            try:
                ranks.serve(prepared)
            finally:
                for last in learnt:
                    keep(last.guides)
            raise SystemExit(0)
        return work_off(jobs, ranks, one)


def _keep_stages_together(stages: Sequence[Config]) -> None:
    """Raises UserError where a stage would go on whose end a kept run of the next one began from."""
    for stage, following in pairwise(stages):
        kept, before = (x.run_folder / checkpoint.FILE for x in (following, stage))
        if kept.exists() and before.exists() and not solved_before(stage):
            raise UserError(
                f"{kept} began from the end of the run in {stage.run_folder}, which would go on to other steps; add "
                "resume=false to start anew, or name=... for a folder of its own"
            )


def _turned(ranks: Ranks, config: Config) -> None:
    """The ranks are ready for what this run sends."""
    deal_seed = config.seed if config.loss == "vsd" else None
    ranks.turn_to(travellers(config), deal_seed, slots_at_once(config, ranks.device))


def _one(
    config: Config, index: int, jobs: int, ranks: Ranks, priors: Priors, begun_s: float, audience: Audience
) -> Asset | None:
    """One asset on this group of ranks, stage by stage; None where it was there already."""
    picture = picture_of(config)
    spared(config)
    if picture is not None:
        audience.tell(CutOut(picture))
    for note in notes(config, picture, priors):
        audience.note(note)
    with checkpoint.lock(config.run_folder):
        config = placed(config, picture, priors, audience.note)
        stages = stages_of(config)
        if config.resume:  # another picture's run is refused before a file of it is written over
            first = stages[0]
            checkpoint.check(first.run_folder / checkpoint.FILE, fingerprint(first, given_bytes(first)))
            _keep_stages_together(stages)
        if picture is not None:
            save_picture(config.run_folder / f"{config.run_name}_input.png", picture)
        if jobs > 1 and finished(stages[-1]):
            print(f"{config.run_name}: done before, in {config.run_folder}")
            return None
        solve_s = 0.0
        for place, stage in enumerate(stages):
            last = place == len(stages) - 1
            if not last and solved_before(stage):
                continue
            for note in in_vain(stage):
                audience.note(note)
            if len(stages) > 1:
                audience.note(f"stage {place + 1} of {len(stages)}: {stage.scene}, {stage.steps} steps")
            task = scene_of(stage, picture, priors)
            ranks.begin(index * len(stages) + place, task.compute, note_of(config))
            _turned(ranks, stage)
            run = distilling(stage, ranks, task, given_bytes(stage))
            try:
                window, seconds = solved(stage, run, ranks.device, audience)
            finally:
                keep(task.guides)
            solve_s += seconds
            shown = window.states[0]
            if window.start < run.settings.steps:  # a listener wants the asset as it is now
                break
            if last:
                shown = task.finished(shown)
            else:
                views = Viewer(shown.params, stage).turntable(8, stage.turntable_size)
                contact_sheet(stage.run_folder / f"{stage.run_name}_sheet.png", views)
        if jobs == 1:
            ranks.close()  # the others need not wait for the mesh
        named = stage.but(outdir=config.outdir, name=config.run_name)
        return saved(named, window, shown, picture, time.monotonic() - begun_s, solve_s, audience)
