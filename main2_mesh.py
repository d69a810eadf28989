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
from gs_propeller.app.config import Config
from gs_propeller.app.devices import device_of
from gs_propeller.app.fingerprint import given_bytes
from gs_propeller.app.guides import Priors, find_priors, load_priors, picture_of, told
from gs_propeller.app.job import refining, solved
from gs_propeller.app.log import quiet_libraries, summary
from gs_propeller.base.camera import Cameras, relative_cameras
from gs_propeller.base.media import contact_sheet, turntable
from gs_propeller.base.picture import Picture
from gs_propeller.base.randomness import keyed_generator
from gs_propeller.mesh.io import load_mesh, save_glb, save_obj
from gs_propeller.mesh.refine import Novel, Offsets, Refinement, RefineSettings, refine_angles
from gs_propeller.mesh.texture import Textured, shade
from gs_propeller.solver import checkpoint
from gs_propeller.solver.launcher import share_cores
from gs_propeller.solver.ranks import Ranks


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, see command.py."""
    return run(__file__, argv, _checked, lambda config: 0 if refine_asset(config) else 1)


def _checked(config: Config) -> None:
    """What is wrong with the input is said once, not by every rank. Raises UserError."""
    picture_of(config)
    find_priors(config)
    load_mesh(mesh_file(config))


def mesh_file(config: Config) -> Path:
    """The mesh to refine."""
    return Path(config.mesh) if config.mesh else config.run_folder / f"{config.run_name}.obj"


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
    begun_s = time.monotonic()
    find_priors(config)
    picture, textured = picture_of(config), load_mesh(mesh_file(config))
    quiet_libraries()
    share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), config.threads)
    device = device_of(config)
    task = refinement(config, textured, picture, load_priors(config, device, quiet))
    # The texture itself stays in the host's memory: its part of a step is small beside the prior's.
    with Ranks("cpu", config.timeout_s, kinds=(Offsets, Novel)) as ranks:
        if ranks.rank > 0:
            ranks.serve(lambda job: task.compute)
            raise SystemExit(0)
        with checkpoint.lock(config.run_folder):
            ranks.begin(0, task.compute)
            given = given_bytes(config) + mesh_file(config).read_bytes()
            stage = refining(config, ranks, task, given)
            window, seconds = solved(config, stage, ranks.device, quiet)
            ranks.close()  # the others need not wait for the files
            refined = task.result(window.states[0])
            files = _saved(config, refined)
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


def _saved(config: Config, refined: Textured) -> dict[str, Path]:
    """Every file of the refined asset."""
    folder, name = config.run_folder, config.run_name
    files = {kind: folder / f"{name}_refined.{kind}" for kind in ("obj", "glb")}
    files["png"] = folder / f"{name}_refined_sheet.png"
    save_obj(files["obj"], refined)
    save_glb(files["glb"], refined)

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
