"""The second stage: the mesh's texture follows what the prior makes of its own views.

    python main2_mesh.py --config configs/image.yaml input=data/cat.png

Starts from the first stage's run folder, or from any textured .obj or .glb given by mesh=FILE.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller import checkpoint
from gs_propeller.asset import input_of, orbit_camera, reference_of
from gs_propeller.camera import Cameras, relative_cameras
from gs_propeller.config import Config, load, to_yaml
from gs_propeller.devices import device_of, precision_of
from gs_propeller.errors import UserError
from gs_propeller.io import load_mesh, save_glb, save_obj
from gs_propeller.log import Metrics, Progress, quiet_libraries, show_help, summary
from gs_propeller.media import contact_sheet, turntable
from gs_propeller.picture import load_picture
from gs_propeller.randomness import keyed_generator
from gs_propeller.ranks import share_cores
from gs_propeller.texture import RefineSettings, Textured, refine, refine_angles, shade
from guidance import find_prior
from main_propeller import INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    try:
        config, flags = load(list(sys.argv[1:] if argv is None else argv))
        if flags.help:
            show_help("main2_mesh.py")
        elif flags.dry_run:
            print(to_yaml(config), end="")
        else:
            refine_asset(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was changed", file=sys.stderr)
        return INTERRUPTED
    return 0


def refine_asset(config: Config, quiet: bool = False) -> tuple[Textured, dict[str, Path]]:
    """Refines the texture of config.mesh, or of the first stage's mesh; returns it with the files written.

    The mesh that it starts from stays as it is: the result is NAME_refined. Raises UserError.
    """
    begun_s = time.monotonic()
    picture = load_picture(input_of(config))
    folder, name = config.run_folder, config.run_name
    textured = load_mesh(config.mesh or folder / f"{name}.obj")
    quiet_libraries()
    from guidance.zero123 import Zero123  # takes seconds: after what may be wrong with the input

    share_cores(1, config.threads)
    device = device_of(config)
    prior = Zero123(find_prior(config.prior), device, precision_of(config, device))
    known = prior.embed(picture.rgb[None])
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
        codes = relative_cameras(elevation, *angles(step)).to(device)
        images = images.to(device)
        scale = config.refine_guidance
        refined = prior.refine(images, known, codes, noise, strength, guidance_scale=scale)
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
        strength_max=config.refine_strength_max,
        strength_min=config.refine_strength_min,
    )
    stream = None if quiet else sys.stderr
    with checkpoint.lock(folder), Progress("refine", config.refine_steps, 0, stream) as progress:
        metrics = Metrics(folder / "refine_metrics.jsonl")

        def on_step(step: int, loss: float) -> None:
            metrics.write(step=step, loss=loss, elapsed_s=time.monotonic() - begun_s)
            progress.update(step + 1, loss=f"{loss:.4f}")

        refined = refine(textured, cameras_of, targets_of, reference_of(config, picture), settings, on_step)
        metrics.close()

        files = {kind: folder / f"{name}_refined.{kind}" for kind in ("obj", "glb")}
        files["png"] = folder / f"{name}_refined_sheet.png"
        save_obj(files["obj"], refined)
        save_glb(files["glb"], refined)
        turn = [360.0 * k / 8 for k in range(8)]
        around = orbit_camera(config, turn, [config.elevation] * 8)
        contact_sheet(files["png"], shade(refined, around, config.turntable_size)[0])
        if config.turntable_frames:
            files["mp4"] = folder / f"{name}_refined.mp4"
            turn = [360.0 * k / config.turntable_frames for k in range(config.turntable_frames)]
            around = orbit_camera(config, turn, [config.elevation] * len(turn))
            turntable(files["mp4"], shade(refined, around, config.turntable_size)[0], config.fps)
    if not quiet:
        rows = [("steps", f"{config.refine_steps}"), ("time", f"{time.monotonic() - begun_s:.0f} s")]
        summary(f"{name}: texture refined", rows + [(kind, str(path)) for kind, path in files.items()])
    return refined, files


if __name__ == "__main__":
    sys.exit(main())
