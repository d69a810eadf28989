"""Novel views straight from the prior, on objects it never saw: `python -m bench.prior [--seen 50] [--unseen 20]`.

DDIM from noise, 8 views all round each object at the prior's own size: held-out objects of the trained families
(seen), of families that no training view shows (unseen), and models of the test split (models), where the folder of
models is there (guidance/pocket/meshes.py); at several numbers of steps: one step is the prior's mean,
which distillation follows; more steps draw one of what may be, sharper, and in PSNR farther from the truth. Beside it
the mean of what it makes of the picture's six variants, which a run with `mirror` and `hue` follows, and in the same
run rivals that draw nothing: the known view unchanged, the mean training view, and the training object whose known
view is nearest, mirror images included, turned as asked. And what the VAE alone keeps of the true views, and of real
pictures framed as the program frames them; and the true views' own IoU (truth_iou), whose white parts and edges are no
object to a measure that sees a picture over white: no prior can have more. LPIPS is measured where its weights are in
the cache. Prints tables, writes a contact sheet, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional as F

from bench.truth import save_png
from gs_propeller.app.log import quiet_libraries
from gs_propeller.base.camera import orbit
from gs_propeller.distil.symmetry import Variant, variants
from gs_propeller.pictures.picture import load_picture
from guidance import POCKET, find_prior
from guidance.pocket.data import (
    OBJECTS,
    SIZE_PX,
    TEST_SEED,
    VALIDATION_SEED,
    Pose,
    held_out,
    held_out_models,
    member,
    shard,
)
from guidance.pocket.families import FAMILIES, UNTRAINED
from guidance.pocket.meshes import TEST, TRAIN, VALIDATION, keys, models_folder
from guidance.pocket.render import FOV_Y_RAD, RADIUS, Shown, on_white, views
from guidance.pocket.score import Turned, iou, psnr_db, sampled, turned
from guidance.pocket.score_vae import kept_db
from guidance.zero123 import Zero123

VARIED = "DDIM, mean of the variants"  # of the headline's steps
MEASURES = ("psnr_db", "ssim", "iou")
Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Library:
    """Training objects evenly from the stream: where [K, 2] (shard, index), known [K, 3, S, S] uint8; and the mean
    [3, S, S] of training views."""

    where: Tensor
    known: Tensor
    mean: Tensor

    def nearest(self, case: Turned) -> Tensor:
        """[V, 3, S, S]: the true views of the object whose known view is nearest in mean square."""
        wanted, known = case.known, self.known.float() / 255
        plain = (known - wanted).square().mean((1, 2, 3))
        mirror = (known - wanted.flip(-1)).square().mean((1, 2, 3))
        mirrored = bool(mirror.min() < plain.min())
        row = int((mirror if mirrored else plain).argmin())
        thing, pose = member(*self.where[row].tolist())
        azimuths = pose.azimuth_rad + case.azimuths_rad * (-1 if mirrored else 1)
        tilts = pose.elevation_rad + case.elevations_rad - case.pose.elevation_rad
        drawn = on_white(views(thing, orbit(azimuths, tilts, RADIUS, FOV_Y_RAD), known.shape[-1]))
        return drawn.flip(-1) if mirrored else drawn


def library(objects: int, first: int, end: int) -> Library:
    """From the shards first .. end - 1; drawn once, then kept in build/bench."""
    numbers = np.linspace(first, end - 1, -(-objects // OBJECTS)).round().astype(int)
    path = Path(f"build/bench/library-{objects}-{first}-{end}-{len(keys(TRAIN))}.safetensors")
    if not path.exists():
        where = torch.tensor([(int(n), i) for n in numbers for i in range(OBJECTS)])[:objects]
        known = torch.empty(len(where), 3, SIZE_PX, SIZE_PX, dtype=torch.uint8)
        for row, (number, index) in enumerate(where.tolist()):
            thing, pose = member(number, index)
            front = orbit([pose.azimuth_rad], [pose.elevation_rad], RADIUS, FOV_Y_RAD)
            known[row] = (on_white(views(thing, front, SIZE_PX))[0] * 255 + 0.5).to(torch.uint8)
        mean = torch.stack(
            [shard(int(n), 16).images[:, 1:].float().mean((0, 1)) / 255 for n in numbers]
        ).mean(0)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"where": where, "known": known, "mean": mean}, path)
    return Library(**load_file(path))


def in_every_variant(prior: Zero123, case: Turned, steps: int, seed: int) -> Tensor:
    """[V, 3, S, S]: the mean of what the prior makes of each of the picture's variants, put back."""
    found = []
    for row, known in enumerate(variants(case.known)):
        variant = Variant.of(torch.full((len(case.truth),), row))
        azimuths = torch.where(variant.mirror, -case.azimuths_rad, case.azimuths_rad)
        seen = replace(case, known=known, azimuths_rad=azimuths)
        found.append(variant.undone(sampled(prior, seen, steps, seed)))
    return torch.stack(found).mean(0)


def asked(seen: int, unseen: int, models: int, validation: bool) -> dict[str, list[tuple[Shown, Pose]]]:
    """The objects by kind; no models where there is no folder of them."""
    first = VALIDATION_SEED if validation else TEST_SEED
    known: list[tuple[Shown, Pose]] = [*held_out(seen, first, FAMILIES)]
    new: list[tuple[Shown, Pose]] = [*held_out(unseen, first, UNTRAINED)]
    real: list[tuple[Shown, Pose]] = (
        [*held_out_models(models, VALIDATION if validation else TEST)] if models else []
    )
    return {kind: cases for kind, cases in (("seen", known), ("unseen", new), ("models", real)) if cases}


def pictures() -> list[Path]:
    """The real pictures that lie beside the folder of models."""
    folder = models_folder()
    found = sorted(folder.resolve().parent.iterdir()) if folder else []
    return [path for path in found if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")]


def perceptual() -> Perceptual | None:
    """LPIPS (AlexNet) where the package and its weights are in the cache; it is not among the requirements."""
    try:
        import lpips

        return lpips.LPIPS(net="alex", verbose=False).eval()
    except (ImportError, OSError, RuntimeError):
        return None


@torch.no_grad()
def measured(images: Tensor, case: Turned, lpips: Perceptual | None) -> dict[str, float]:
    """Means over the views."""
    pairs = zip(images.numpy(), case.truth.numpy(), strict=True)
    ssim = [structural_similarity(a, b, channel_axis=0, data_range=1.0) for a, b in pairs]
    found = {
        "psnr_db": psnr_db(images, case.truth),
        "ssim": float(np.mean(ssim)),
        "iou": iou(images, case.masks),
    }
    if lpips is not None:
        found["lpips"] = float(lpips(images * 2 - 1, case.truth * 2 - 1).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prior", default="pocket")
    parser.add_argument("--seen", type=int, default=50, help="held-out objects of trained families")
    parser.add_argument("--unseen", type=int, default=20, help="objects of untrained families")
    parser.add_argument("--models", type=int, default=43, help="of the test split, evenly; it has 129")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[2, 1, 4, 20], help="DDIM steps; the first is the headline's"
    )
    parser.add_argument(
        "--library", type=int, default=4096, help="training objects that the nearest is sought in"
    )
    parser.add_argument(
        "--validation", action="store_true", help="objects to tune on, apart from the test ones"
    )
    parser.add_argument("--sheet", type=Path, default=Path("build/bench/prior.png"))
    given = parser.parse_args()
    quiet_libraries()
    prior = Zero123(find_prior(given.prior))
    trained = json.loads((POCKET / "training.json").read_text())
    rivals, lpips = library(given.library, *trained["shards"]), perceptual()
    measures = MEASURES + (("lpips",) if lpips else ())
    console, figures, sheet = Console(width=120), {}, []
    kept: dict[str, float] = {}
    own_iou: dict[str, float] = {}
    for kind, cases in asked(given.seen, given.unseen, given.models, given.validation).items():
        rows: dict[str, list[dict[str, float]]] = {}
        per_family: dict[str, list[float]] = {}
        truths, visible = [], []
        for index, (thing, pose) in enumerate(cases):
            case = turned(thing, pose, prior.size_px)
            drawn = {f"DDIM, {n} steps": sampled(prior, case, n, index) for n in given.steps}
            drawn[VARIED] = in_every_variant(prior, case, given.steps[0], index)
            drawn["known view"] = case.known.expand_as(case.truth)
            drawn["mean training view"] = rivals.mean.expand_as(case.truth)
            drawn["nearest training object"] = rivals.nearest(case)
            for name, images in drawn.items():
                rows.setdefault(name, []).append(measured(images, case, lpips))
            chosen = next(iter(drawn.values()))
            per_family.setdefault(thing.family, []).append(psnr_db(chosen, case.truth))
            truths.append(case.truth[::4])
            visible.append(iou(case.truth, case.masks))
            if index < 2 * len(UNTRAINED):
                strips = [torch.cat([case.known, *x[::2]], 2) for x in (case.truth, *drawn.values())][:3]
                sheet.append(torch.cat(strips, 1))
        means = {
            name: {k: float(np.mean([r[k] for r in found])) for k in measures} for name, found in rows.items()
        }
        table = Table(title=f"{len(cases)} {kind} objects, 8 views at {prior.size_px} px")
        for heading in ("", "PSNR dB", "SSIM", "mask IoU", *measures[3:]):
            table.add_column(heading)
        for name, row in means.items():
            table.add_row(name, f"{row['psnr_db']:.2f}", *(f"{row[k]:.3f}" for k in measures[1:]))
        console.print(table)
        console.print(", ".join(f"{f} {np.mean(v):.1f}" for f, v in per_family.items()))
        figures[kind] = means
        prefix = "" if kind == "seen" else f"{kind}_"
        kept[prefix] = kept_db(prior.vae, torch.cat(truths))
        own_iou[prefix] = float(np.mean(visible))
    save_png(str(given.sheet), torch.cat([torch.cat(sheet[i::2], 1) for i in range(2)], 2))
    result: dict[str, float] = {"ddim_steps": given.steps[0]}
    for n in given.steps[1:]:
        for kind, means in figures.items():
            result[f"{kind}_psnr_db_at_{n}"] = means[f"DDIM, {n} steps"]["psnr_db"]
    for kind, means in figures.items():
        prefix = "" if kind == "seen" else f"{kind}_"
        ours = next(iter(means.values()))
        result |= {
            f"{kind}_psnr_db": ours["psnr_db"],
            f"{kind}_iou": ours["iou"],
            f"{kind}_ssim": ours["ssim"],
        }
        result[f"{kind}_varied_psnr_db"] = means[VARIED]["psnr_db"]
        for name, key in (
            ("known view", "copy"),
            ("nearest training object", "nearest"),
            ("mean training view", "mean"),
        ):
            result |= {f"{prefix}{key}_{k}": means[name][k] for k in ("psnr_db", "iou")}
    result |= {f"{prefix}vae_psnr_db": value for prefix, value in kept.items()}
    result |= {f"{prefix}truth_iou": value for prefix, value in own_iou.items()}
    if files := pictures():
        framed = [F.interpolate(load_picture(f).rgb[None], (prior.size_px,) * 2, mode="area") for f in files]
        each = {f.name: kept_db(prior.vae, x) for f, x in zip(files, framed, strict=True)}
        console.print("the VAE on pictures: " + ", ".join(f"{name} {db:.2f} dB" for name, db in each.items()))
        result["pictures_vae_psnr_db"] = float(np.mean(list(each.values())))
    print(json.dumps({k: round(v, 3) for k, v in result.items()}))


if __name__ == "__main__":
    main()
