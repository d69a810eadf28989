"""The second stage on this process's ranks: for each asset solve, save."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from gs_propeller.app.config import Config
from gs_propeller.app.devices import device_of, group_size, rank_count
from gs_propeller.app.elevation import assumed, note_of, noted, placed
from gs_propeller.app.events import NOBODY, Audience, FilesWritten
from gs_propeller.app.fingerprint import given_bytes
from gs_propeller.app.guides import fetch_priors, load_priors, picture_of
from gs_propeller.app.job import jobs_of, solved, work_off
from gs_propeller.app.log import quiet_libraries, said_if_long
from gs_propeller.app.refining import (
    TRAVELLERS,
    refined_before,
    refinement,
    refining,
    saved,
    started,
)
from gs_propeller.mesh.foreign import Frame
from gs_propeller.mesh.raster import mesh_device, mesh_trouble
from gs_propeller.mesh.refine import Refinement
from gs_propeller.mesh.render import warm
from gs_propeller.mesh.texture import Textured
from gs_propeller.solver import checkpoint
from gs_propeller.solver.launcher import share_cores
from gs_propeller.solver.ranks import Ranks

Refined = tuple[Textured, dict[str, Path]]


def checked(config: Config) -> None:
    """What is wrong with the input is said once, not by every rank. Raises UserError."""
    jobs = jobs_of(config)
    group_size(config, rank_count(config, splats=False), len(jobs))
    if len(jobs) == 1:
        started(assumed(jobs[0]))
    fetch_priors(config)


def refine_assets(jobs: Sequence[Config], audience: Audience, made: list[Refined] | None = None) -> int:
    """Every job, by groups of ranks from one queue; the exit code. What cannot be used among several is skipped."""
    begun_s, config = time.monotonic(), jobs[0]
    early = NOBODY if int(os.environ.get("RANK", 0)) else audience  # what concerns all groups is said once
    if len(jobs) == 1:  # before the seconds that loading takes
        started(assumed(config))
    quiet_libraries()
    share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), config.threads)
    device = device_of(config, splats=False)
    priors = load_priors(config, device, early.prior_found)
    if device.type == "cuda" and (trouble := mesh_trouble(device)) is not None:
        early.note(f"the CPU draws the mesh: {trouble}")
    if mesh_device(device).type == "cpu":  # before the loop: compiling is no part of its pace
        with said_if_long("compiling the CPU's kernels, once on this machine: a minute or so", early.note):
            warm()

    def task_of(job: Config) -> tuple[Refinement, Frame]:
        textured, frame, said = started(job)
        for line in said if ranks.rank == 0 else ():
            audience.note(line)
        return refinement(job, textured, picture_of(job), priors), frame

    def one(index: int) -> None:
        nonlocal begun_s
        job = placed(jobs[index], picture_of(jobs[index]), priors, audience.note, own=True)
        if len(jobs) > 1 and refined_before(job):
            print(f"{job.run_name}: refined before, in {job.run_folder}")
            return
        result = _one(job, index, *task_of(job), ranks, len(jobs) == 1, begun_s, audience)
        if made is not None:
            made.append(result)
        begun_s = time.monotonic()

    group = group_size(config, int(os.environ.get("WORLD_SIZE", 1)), len(jobs))
    with Ranks(
        mesh_device(device), config.timeout_s, group, TRAVELLERS, rollout=config.rollout_device
    ) as ranks:
        if ranks.rank > 0:
            ranks.serve(lambda index: task_of(noted(jobs[index], ranks.note))[0].compute)
            raise SystemExit(0)
        return work_off(jobs, ranks, one)


def _one(
    config: Config, index: int, task: Refinement, frame: Frame, ranks: Ranks, alone: bool, begun_s: float,
    audience: Audience,
) -> Refined:  # fmt: skip
    """One asset on this group of ranks. alone: there is no other job."""
    with checkpoint.lock(config.run_folder):
        ranks.begin(index, task.compute, note_of(config))
        stage = refining(config, ranks, task, given_bytes(config))
        window, seconds = solved(config, stage, ranks.device, audience)
        if alone:
            ranks.close()  # the others need not wait for the files
        refined = task.finished(window.states[0])
        files = saved(config, refined, frame)
        if window.start == stage.settings.steps:
            (config.run_folder / stage.checkpoint).unlink(missing_ok=True)  # done: the next call starts anew
    total_s = time.monotonic() - begun_s
    facts = [
        ("steps", f"{window.states[0].step} in {window.passes} passes, {window.evaluations} evaluations"),
        ("time", f"{seconds:.0f} s solving, {total_s:.0f} s in this call"),
    ]
    audience.tell(FilesWritten(f"{config.run_name}: texture refined", files, facts))
    return refined, files
