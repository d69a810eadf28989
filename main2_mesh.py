"""The second stage: the mesh's texture follows what the prior makes of its own views, parallel in time too.

    python main2_mesh.py --config configs/image.yaml input=data/cat.png

Starts from the first stage's run folder, or from any textured .obj or .glb given by mesh=FILE. Read downwards:
arguments, ranks, solve, save.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.app.asset import orbit_camera, reference_of
from gs_propeller.app.command import run
from gs_propeller.app.config import Config, load
from gs_propeller.app.devices import device_of, group_size, rank_count
from gs_propeller.app.fingerprint import SECOND_STAGE, fingerprint, given_bytes
from gs_propeller.app.guides import Priors, load_priors, picture_of, told
from gs_propeller.app.job import refining, solved
from gs_propeller.app.jobs import jobs_of, work_off
from gs_propeller.app.log import quiet_libraries, summary
from gs_propeller.base.camera import Cameras, relative_cameras
from gs_propeller.base.media import contact_sheet, turntable
from gs_propeller.base.picture import Picture
from gs_propeller.base.randomness import keyed_generator
from gs_propeller.mesh.foreign import Frame, load_mesh, placed
from gs_propeller.mesh.io import save_glb, save_obj
from gs_propeller.mesh.refine import Novel, Offsets, Refinement, RefineSettings, refine_angles
from gs_propeller.mesh.texture import Textured, shade
from gs_propeller.solver import checkpoint
from gs_propeller.solver.launcher import share_cores
from gs_propeller.solver.ranks import Ranks


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, see command.py."""
    return run(__file__, argv, _checked, lambda config: refine_assets(jobs_of(config, announce=True)))


def _checked(config: Config) -> None:
    """What is wrong with the input is said once, not by every rank. Raises UserError."""
    jobs = jobs_of(config)
    group_size(config, rank_count(config), len(jobs))
    if len(jobs) == 1:
        started(jobs[0])


def mesh_file(config: Config) -> Path:
    """The mesh to refine."""
    return Path(config.mesh) if config.mesh else config.run_folder / f"{config.run_name}.obj"


def started(config: Config) -> tuple[Textured, Frame]:
    """(the mesh to refine, put before the cameras; where it was put, if it is not a run's own). Raises UserError."""
    picture, file = picture_of(config), mesh_file(config)
    textured = load_mesh(file, config.texture_size)
    frame = placed(textured, reference_of(config, picture), str(file)) if config.mesh else Frame()
    return frame.into(textured), frame


def refinement(config: Config, textured: Textured, picture: Picture | None, priors: Priors) -> Refinement:
    """The second stage's problem of this mesh under these priors; the same on every rank. The picture's prior refines
    where there is a picture, else the text prior."""
    guide, prior = told(config, picture, priors)[0], priors.first
    scale = config.refine_guidance if priors.zero123 is not None else config.refine_text_guidance
    elevation = math.radians(config.elevation)
    low, high = elevation + math.radians(config.min_elevation), elevation + math.radians(config.max_elevation)

    def angles(step: int) -> tuple[Tensor, Tensor]:
        return refine_angles(step, config.refine_batch, low, high, config.seed)

    def cameras_of(step: int) -> Cameras:
        azimuths, elevations = angles(step)
        return orbit_camera(config, azimuths.rad2deg().tolist(), elevations.rad2deg().tolist())

    def targets_of(step: int, images: Tensor, strength: float) -> Tensor:
        generator = keyed_generator(config.seed, step, "refine noise")
        noise = torch.randn(len(images), *prior.latent_shape, generator=generator)
        codes = relative_cameras(elevation, *angles(step)).to(prior.device)
        images = images.to(prior.device)
        refined = prior.refine(
            images, guide.conditioning, codes, noise, strength, config.refine_denoise, scale
        )
        # The change that the prior makes, not its picture: what the VAE loses by itself is no reason to
        # change the texture, and detail finer than its pixels stays (DreamGaussian takes the picture).
        with torch.no_grad():
            change = refined - prior.decode(prior.encode(images))
        change = F.interpolate(change, images.shape[-2:], mode="bilinear", align_corners=False)
        return (images + change).clamp(0, 1).cpu()

    settings = RefineSettings(
        steps=config.refine_steps,
        batch=config.refine_batch,
        lr=config.texture_lr,
        size=2 * prior.size_px,
        coarse=config.refine_texels,
        strength_max=config.refine_strength_max,
        strength_min=config.refine_strength_min,
        geometry=config.train_geo,
        geometry_lr=config.geo_lr,
        lambda_smooth=config.lambda_smooth,
        lambda_normal=config.lambda_normal,
    )
    return Refinement(textured, cameras_of, targets_of, reference_of(config, picture), settings)


def refine_asset(config: Config, quiet: bool = False) -> tuple[Textured, dict[str, Path]]:
    """Refines the texture of config.mesh, or of the first stage's mesh; returns it with the files written.

    The mesh that it starts from stays as it is: the result is NAME_refined. The other ranks of a launch work until
    rank 0 has no more to ask, and end there (SystemExit). Raises UserError.
    """
    made: list[tuple[Textured, dict[str, Path]]] = []
    refine_assets([config], quiet, made)
    return made[0]


def refine_assets(
    jobs: Sequence[Config], quiet: bool = False, made: list[tuple[Textured, dict[str, Path]]] | None = None
) -> int:
    """Every job, by groups of ranks from one queue; the exit code. What cannot be used among several is skipped."""
    begun_s, config = time.monotonic(), jobs[0]
    if len(jobs) == 1:  # before the seconds that loading takes
        started(config)
    quiet_libraries()
    share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), config.threads)
    priors = load_priors(config, device_of(config), quiet)

    def task_of(index: int) -> tuple[Refinement, Frame]:
        textured, frame = started(jobs[index])
        return refinement(jobs[index], textured, picture_of(jobs[index]), priors), frame

    def one(index: int) -> None:
        nonlocal begun_s
        if len(jobs) > 1 and refined_before(jobs[index]):
            print(f"{jobs[index].run_name}: refined before, in {jobs[index].run_folder}")
            return
        result = _one(jobs[index], index, *task_of(index), ranks, len(jobs) == 1, begun_s, quiet)
        if made is not None:
            made.append(result)
        begun_s = time.monotonic()

    group = group_size(config, int(os.environ.get("WORLD_SIZE", 1)), len(jobs))
    # The texture itself stays in the host's memory: its part of a step is small beside the prior's.
    with Ranks("cpu", config.timeout_s, group, kinds=(Offsets, Novel)) as ranks:
        if ranks.rank > 0:
            ranks.serve(lambda index: task_of(index)[0].compute)
            raise SystemExit(0)
        return work_off(jobs, ranks, one)


def refined_before(config: Config) -> bool:
    """Whether the folder holds this very result already, made from the mesh as it is now."""
    options = config.run_folder / "refine_config.yaml"
    result, mesh = config.run_folder / f"{config.run_name}_refined.glb", mesh_file(config)
    if not (config.resume and options.is_file() and result.is_file() and mesh.is_file()):
        return False
    marks = [fingerprint(c, b"", also=SECOND_STAGE) for c in (config, load(["--config", str(options)])[0])]
    return marks[0] == marks[1] and result.stat().st_mtime >= mesh.stat().st_mtime


def _one(
    config: Config,
    index: int,
    task: Refinement,
    frame: Frame,
    ranks: Ranks,
    alone: bool,
    begun_s: float,
    quiet: bool,
) -> tuple[Textured, dict[str, Path]]:
    """One asset on this group of ranks. alone: there is no other job."""
    with checkpoint.lock(config.run_folder):
        ranks.begin(index, task.compute)
        given = given_bytes(config) + mesh_file(config).read_bytes()
        stage = refining(config, ranks, task, given + str(len(task.textured.texture)).encode())
        window, seconds = solved(config, stage, ranks.device, quiet)
        if alone:
            ranks.close()  # the others need not wait for the files
        refined = task.result(window.states[0])
        files = _saved(config, refined, frame)
        (config.run_folder / stage.checkpoint).unlink(missing_ok=True)  # done: the next call starts anew
    if not quiet:
        total_s = time.monotonic() - begun_s
        rows = [
            ("steps", f"{window.start} in {window.passes} passes, {window.evaluations} evaluations"),
            ("time", f"{seconds:.0f} s solving, {total_s:.0f} s in this call"),
        ]
        shown = rows + [(kind, str(path)) for kind, path in files.items()]
        summary(f"{config.run_name}: texture refined", shown)
    return refined, files


def _saved(config: Config, refined: Textured, frame: Frame) -> dict[str, Path]:
    """Every file of the refined asset; the mesh in the scale and place of the file that it came from."""
    folder, name = config.run_folder, config.run_name
    files = {kind: folder / f"{name}_refined.{kind}" for kind in ("obj", "glb")}
    files["png"] = folder / f"{name}_refined_sheet.png"
    save_obj(files["obj"], frame.back(refined))
    save_glb(files["glb"], frame.back(refined))

    def around(count: int) -> Tensor:
        cameras = orbit_camera(config, [360.0 * k / count for k in range(count)], [config.elevation] * count)
        return shade(refined, cameras, config.turntable_size)[0]

    contact_sheet(files["png"], around(8))
    if config.turntable_frames:
        files["mp4"] = folder / f"{name}_refined.mp4"
        turntable(files["mp4"], around(config.turntable_frames), config.fps)
    return files


if __name__ == "__main__":
    sys.exit(main())
