"""The first stage on this process's ranks: for each asset solve, mesh, save."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from gs_propeller.app.asset import scene_of, slots_at_once, travellers
from gs_propeller.app.config import Config
from gs_propeller.app.devices import device_of, group_size, rank_count
from gs_propeller.app.events import NOBODY, Audience, CutOut
from gs_propeller.app.fingerprint import given_bytes
from gs_propeller.app.guides import Priors, fetch_priors, keep, load_priors, notes, picture_of
from gs_propeller.app.job import Asset, distilling, finished, jobs_of, saved, solved, work_off
from gs_propeller.app.kinds.choice import kind_of
from gs_propeller.app.log import quiet_libraries, said_if_long
from gs_propeller.base.errors import UserError
from gs_propeller.base.picture import save_picture
from gs_propeller.base.threads import set_threads
from gs_propeller.distil.phases import Distilled
from gs_propeller.scenes.gaussians.compressed import check_installed
from gs_propeller.solver import checkpoint
from gs_propeller.solver.launcher import share_cores
from gs_propeller.solver.ranks import Compute, Ranks


def checked(config: Config) -> None:
    """What is wrong with the input is said once, not by every rank. Raises UserError."""
    _checked_copies(config)
    jobs = jobs_of(config)
    group_size(config, rank_count(config), len(jobs))
    if len(jobs) == 1:
        picture_of(jobs[0])
    fetch_priors(config)


def _checked_copies(config: Config) -> None:
    """Raises UserError for a copy that cannot be made."""
    if config.compressed != "none" and config.scene != "gaussians":
        raise UserError(
            f"compressed={config.compressed} holds Gaussians and scene={config.scene} has none; leave one of them out"
        )
    check_installed(config.compressed)


def make_assets(jobs: Sequence[Config], audience: Audience, assets: list[Asset] | None = None) -> int:
    """Every job, by groups of ranks from one queue; the exit code. A bad picture among several is skipped."""
    begun_s, config = time.monotonic(), jobs[0]
    early = NOBODY if int(os.environ.get("RANK", 0)) else audience  # what concerns all groups is said once
    _checked_copies(config)
    if len(jobs) == 1:
        picture_of(config)  # before the seconds that loading takes
    quiet_libraries()
    device = device_of(config, say=early.note)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    set_threads(share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), config.threads))
    priors = load_priors(config, device, early.prior_found)
    if device.type == "cpu":  # before the loop: compiling is no part of its pace
        with said_if_long("compiling the CPU's kernels, once on this machine: a minute or so", early.note):
            kind_of(config).warm()

    learnt: list[Distilled] = []

    def prepared(index: int) -> Compute:
        for earlier in learnt:
            keep(earlier.guides)
        learnt[:] = [scene_of(jobs[index], picture_of(jobs[index]), priors)]
        return learnt[0].compute

    def one(index: int) -> None:
        nonlocal begun_s
        asset = _one(jobs[index], index, len(jobs), ranks, priors, begun_s, audience)
        if assets is not None and asset is not None:
            assets.append(asset)
        begun_s = time.monotonic()

    group = group_size(config, processes, len(jobs))
    deal_seed = config.seed if config.loss == "vsd" else None
    at_once = slots_at_once(config, device)
    with Ranks(
        device, config.timeout_s, group, travellers(config), deal_seed, at_once, config.rollout_device
    ) as ranks:
        if ranks.rank > 0:
            try:
                ranks.serve(prepared)
            finally:
                for last in learnt:
                    keep(last.guides)
            raise SystemExit(0)
        return work_off(jobs, ranks, one)


def _one(
    config: Config, index: int, jobs: int, ranks: Ranks, priors: Priors, begun_s: float, audience: Audience
) -> Asset | None:
    """One asset on this group of ranks; None where it was there already."""
    picture = picture_of(config)
    if picture is not None:
        audience.tell(CutOut(picture))
    for note in notes(config, picture, priors):
        audience.note(note)
    with checkpoint.lock(config.run_folder):
        if picture is not None:
            save_picture(config.run_folder / f"{config.run_name}_input.png", picture)
        if jobs > 1 and finished(config):
            print(f"{config.run_name}: done before, in {config.run_folder}")
            return None
        task = scene_of(config, picture, priors)
        ranks.begin(index, task.compute)
        stage = distilling(config, ranks, task, given_bytes(config))
        try:
            window, seconds = solved(config, stage, ranks.device, audience)
        finally:
            keep(task.guides)
        if jobs == 1:
            ranks.close()  # the others need not wait for the mesh
        return saved(config, window, picture, time.monotonic() - begun_s, seconds, audience)
