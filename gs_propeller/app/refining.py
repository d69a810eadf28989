"""The second stage's job: the problem that a mesh poses under its priors, how it is solved, and the result's files.

V views, S their side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.app.asset import Logged, orbit_camera, reference_of
from gs_propeller.app.config import Config, load
from gs_propeller.app.fingerprint import (
    SECOND_STAGE,
    fingerprint,
    gone_on_since,
    of_another_picture,
    placed_otherwise,
)
from gs_propeller.app.guides import Priors, picture_of, told
from gs_propeller.app.job import Stage
from gs_propeller.base.camera import Cameras, relative_cameras
from gs_propeller.base.errors import UserError
from gs_propeller.base.media import contact_sheet, turntable
from gs_propeller.base.randomness import keyed_generator
from gs_propeller.distil.draw import camera_of
from gs_propeller.distil.pull import Pull
from gs_propeller.distil.symmetry import Variant, variant_of
from gs_propeller.mesh import refine
from gs_propeller.mesh.foreign import Frame, placed, read_mesh
from gs_propeller.mesh.io import save_glb, save_obj
from gs_propeller.mesh.raster import mesh_device
from gs_propeller.mesh.refine import Offsets, Refinement, RefineState, refine_angles
from gs_propeller.mesh.texture import Textured, shade
from gs_propeller.pictures.picture import Picture
from gs_propeller.solver.picard import Problem
from gs_propeller.solver.ranks import Ranks

CHECKPOINT = "refine_checkpoint.safetensors"  # there while there is something to go on from
TRAVELLERS = Offsets, Pull  # the classes of what goes to the ranks and of what comes back


def mesh_file(config: Config) -> Path:
    """The mesh to refine."""
    return Path(config.mesh) if config.mesh else config.run_folder / f"{config.run_name}.obj"


def result_file(config: Config, kind: str) -> Path:
    """Where the refined asset goes: "obj" or "glb"."""
    return config.run_folder / f"{config.run_name}_refined.{kind}"


def started(config: Config) -> tuple[Textured, Frame, tuple[str, ...]]:
    """(the mesh to refine, put before the cameras; where it was put, if it is not a run's own; what the user should
    know of its file). Raises UserError."""
    picture, file = picture_of(config), mesh_file(config)
    if any(
        file.resolve() == made.resolve() for made in (result_file(config, "obj"), result_file(config, "glb"))
    ):
        raise UserError(
            f"{file} would be overwritten by what is made of it; name=NAME or outdir=FOLDER keeps both"
        )
    if not config.mesh and config.input and of_another_picture(config):
        raise UserError(
            f"the mesh in {config.run_folder} was not made of {config.input}; outdir= or name= say which "
            "run is meant, and mesh=FILE refines any mesh by this picture"
        )
    if not config.mesh and config.input and (otherwise := placed_otherwise(config)):
        raise UserError(
            f"the mesh in {config.run_folder} was made with {', '.join(otherwise)}, and would be bent to a picture "
            "that it does not fit; give the same here, or make it anew"
        )
    if not config.mesh and (step := gone_on_since(config, file)):
        raise UserError(
            f"{file} is older than the run in its folder, which was broken off at step {step}; run the first stage to "
            "its end, or mesh=FILE refines that mesh"
        )
    textured, notes = read_mesh(file, config.texture_size)
    frame = placed(textured, reference_of(config, picture), str(file)) if config.mesh else Frame()
    return frame.into(textured), frame, notes


def refined_before(config: Config) -> bool:
    """Whether the folder holds this very result already, whole, made from the mesh as it is now."""
    if (config.run_folder / CHECKPOINT).exists():
        return False
    options = config.run_folder / "refine_config.yaml"
    result, mesh = result_file(config, "glb"), mesh_file(config)
    if not (config.resume and options.is_file() and result.is_file() and mesh.is_file()):
        return False
    marks = [fingerprint(c, b"", also=SECOND_STAGE) for c in (config, load(["--config", str(options)])[0])]
    newest = max(mesh.stat().st_mtime, options.stat().st_mtime)  # options are written before the work
    return marks[0] == marks[1] and result.stat().st_mtime >= newest


def refinement(config: Config, textured: Textured, picture: Picture | None, priors: Priors) -> Refinement:
    """The second stage's problem of this mesh under these priors; the same on every rank. The picture's prior refines
    where there is a picture, else the text prior."""
    s, prior, guide = config.sections, priors.first, told(config, picture, priors)[0]
    scale = s.refine.refine_guidance if priors.zero123 is not None else s.refine.refine_text_guidance
    level = s.views.elevation_rad
    low, high = (level + x for x in s.views.novel_elevations_rad)

    def angles(step: int) -> tuple[Tensor, Tensor]:
        return refine_angles(step, s.refine.refine_batch, low, high, s.files.seed)

    def cameras_of(step: int) -> Cameras:
        return camera_of(s.views, *angles(step))

    def targets_of(step: int, images: Tensor, strength: float) -> Tensor:
        generator = keyed_generator(s.files.seed, step, "refine noise")
        noise = torch.randn(len(images), *prior.latent_shape, generator=generator)
        codes = relative_cameras(level, *angles(step)).to(prior.device)
        images, told = images.to(prior.device), guide.conditioning
        if guide.variants:
            asked = variant_of(step, len(images), s.views, s.files.seed, "refine variant")
            variant = Variant.joined([asked], prior.device)
            told, images, codes = variant.asked(told, images, codes)
        refined = prior.refine(images, told, codes, noise, strength, s.refine.refine_denoise, scale)
        # The change that the prior makes, not its picture: what the VAE loses by itself is no reason to
        # change the texture, and detail finer than its pixels stays (DreamGaussian takes the picture).
        with torch.no_grad():
            change = refined - prior.decode(prior.encode(images))
        change = F.interpolate(change, images.shape[-2:], mode="bilinear", align_corners=False)
        target = (images + change).clamp(0, 1)
        return variant.undone(target) if guide.variants else target

    device = mesh_device(prior.device)
    reference = reference_of(config, picture)
    return Refinement(
        textured.to(device),
        cameras_of,
        targets_of,
        None if reference is None else reference.to(device),
        s.refine,
        2 * prior.size_px,
        s.scene.nonfinite == "skip",
        0.0 if config.mesh else s.known.recolour,  # a mesh of another's keeps what colours it has
    )


def refining(config: Config, ranks: Ranks, task: Refinement, given: bytes) -> Stage[RefineState, Pull]:
    """The second stage. given: the picture's bytes."""
    logged, s = Logged(), config.sections
    settings = replace(s.solver, steps=task.steps, threshold=s.refine.refine_threshold)
    return Stage(
        "refine",
        problem(task, ranks, logged, s.scene.distance),
        settings.among(ranks.world),
        task.first,
        fingerprint(config, given + _bytes(task.textured), also=SECOND_STAGE),
        RefineState.from_tensors,
        refine.LOSSES,
        logged.rows,
        lambda state: len(state.params),
        lambda state, azimuths, size: around(config, task.result(state), azimuths, size),
        CHECKPOINT,
        "refine_metrics.jsonl",
        "refine_config.yaml",
        task.every,
        s.refine.refine_steps,
    )


def _bytes(textured: Textured) -> bytes:
    """Of the mesh as it was read: of all the files that it has."""
    mesh = textured.mesh
    parts = (mesh.vertices, mesh.faces, textured.uvs, textured.uv_faces, textured.texture)
    return b"".join(part.cpu().numpy().tobytes() for part in parts)


def problem(task: Refinement, ranks: Ranks, logged: Logged, by: str) -> Problem[RefineState, Pull]:
    """What the solver integrates; the dear part runs on all ranks. by: the distance of a guess; "scaled" is "paper"."""
    return Problem(
        ranks.evaluate,
        logged.rolling(task.update, lambda state: state.step // task.every),
        refine.distance,
        task.coast,
        task.mismatch if by == "render" else None,
        ranks.expect,
    )


def saved(config: Config, refined: Textured, frame: Frame) -> dict[str, Path]:
    """Every file of the refined asset; the mesh in the scale and place of the file that it came from."""
    folder, name = config.run_folder, config.run_name
    files = {kind: result_file(config, kind) for kind in ("obj", "glb")}
    files["png"] = folder / f"{name}_refined_sheet.png"
    save_obj(files["obj"], frame.back(refined))
    save_glb(files["glb"], frame.back(refined))

    def turned(count: int) -> Tensor:
        return around(config, refined, [360.0 * k / count for k in range(count)], config.turntable_size)

    contact_sheet(files["png"], turned(8))
    if config.turntable_frames:
        files["mp4"] = folder / f"{name}_refined.mp4"
        turntable(files["mp4"], turned(config.turntable_frames), config.fps)
    return files


def around(config: Config, textured: Textured, azimuths_deg: Sequence[float], size: int) -> Tensor:
    """[V, 3, S, S] of a mesh, at the input's elevation."""
    cameras = orbit_camera(config, azimuths_deg, [config.elevation] * len(azimuths_deg))
    return shade(textured, cameras, size)[0]
