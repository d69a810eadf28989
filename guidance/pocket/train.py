"""Trains the pocket Zero-1-to-3: `python -m guidance.pocket.train --out build/pocket --minutes 60`.

The view-conditioned UNet with its image encoder and camera projection, in the published diffusers layout, on the
latents of a VAE that train_vae.py made. A run resumes from its folder by the same command; --branch takes another
folder's checkpoint, cools it down over --cooling steps here, and leaves that run as it is.
B batch, C latent channels, L latent side. The loss is the mean squared error of v (Salimans & Ho 2022).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessor

from gs_propeller.base.errors import UserError
from guidance.pocket.data import SIZE_PX
from guidance.pocket.families import FAMILIES
from guidance.pocket.meshes import TRAIN, keys, say_if_missing
from guidance.pocket.model import Denoiser, build_scheduler
from guidance.pocket.muon import Muon
from guidance.pocket.plot import plot
from guidance.pocket.score import fixed_sample, score
from guidance.pocket.stream import (
    SHARDS_FIRST,
    Ahead,
    Pool,
    draw,
    encoded_shard,
    keep_encodable,
    latents_file,
    newest_shard,
)
from guidance.pocket.training import (
    DROP,
    MEAN,
    STD,
    Log,
    Options,
    Run,
    arguments,
    autocast,
    averaged,
    branched,
    descend,
    faults_of,
    follow,
    guesses,
    keyed,
    noised,
    record,
    resumed,
    run_folder,
    timesteps,
)
from guidance.pocket.translate import deepened, translated
from guidance.zero123 import Zero123

FOCUS = 0.6  # of the samples, at the levels from which pictures are distilled: configs/image.yaml
GUESSED = 4  # one sample in so many has the model's own guess under the noise,
GUESSED_FROM = 4000  # from this step on: a new model has none
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
    "clip_camera_projection": "clip_camera_projection/diffusion_pytorch_model.safetensors",
}  # of a prior's folder, by the network's part


def vae_of(options: Options) -> AutoencoderKL:
    """The run's VAE: out/vae, put there from --start where there is none."""
    folder = options.out / "vae"
    if not (folder / "config.json").exists():
        if options.start is None:
            raise UserError(
                f"no VAE in {folder}: make one, `python -m guidance.pocket.train_vae --out {options.out}`"
            )
        AutoencoderKL.from_pretrained(options.start / "vae", torch_dtype=torch.float32).save_pretrained(
            folder
        )
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)


def save_vae(out: Path, folder: Path) -> None:
    """The run's VAE into a prior's folder, half precision."""
    AutoencoderKL.from_pretrained(out / "vae").half().save_pretrained(folder / "vae")
    config = folder / "vae" / "config.json"
    kept = {
        k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"
    }  # of the run's folder
    config.write_text(json.dumps(kept, indent=2) + "\n")


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] -> CLIP's normalised pixels."""
    x = (
        images.float() / 255
    )  # numbers and no tensors of them: nothing is copied to a GPU that captures a graph
    return torch.stack([(x[:, i] - MEAN[i]) / STD[i] for i in range(3)], 1)


def loss_of(
    model: Denoiser, sample: tuple[Tensor, Tensor, Tensor, Tensor], step: int, scale: float, alphas: Tensor,
    generator: torch.Generator, drop: float = DROP, guessed: int = GUESSED,
) -> Tensor:  # fmt: skip
    """The mean squared error of v [] of stream.draw's sample, at levels and under noise that the generator draws, on
    its own device; a share `drop` without their condition, one in `guessed` (0: none) with the model's own guess under
    the noise, see training.guesses."""
    known, latents, condition, poses = sample
    device, drawn_on, count = latents.device, generator.device, len(latents)
    t = timesteps(step, count, generator, FOCUS).to(device)
    noise = torch.randn(latents.shape, generator=generator, device=drawn_on).to(device)
    keep = (torch.rand(count, generator=generator, device=drawn_on) >= drop).float().to(device)
    clean, told = latents * scale, (normalise(known), condition, poses, keep)

    def ask(noisy: Tensor, t: Tensor, which: slice = slice(None)) -> Tensor:
        with autocast(device):
            return model(noisy, t, *(x[which] for x in told)).float()

    noisy, target = noised(clean, noise, t, alphas)
    if guessed and step >= GUESSED_FROM:
        some = slice(None, None, guessed)
        noisy[some], target[some], t[some] = guesses(
            partial(ask, which=some), clean[some], noise[some], alphas, generator
        )
    return F.mse_loss(ask(noisy, t), target)


def train_unet(options: Options, vae: AutoencoderKL, log: Log, stream: Path | None = None) -> None:
    """Trains until the minutes or the steps are over, saving every few minutes. stream: the folder of another run whose
    shards are used, none of them forgotten."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model, average = Denoiser().to(device), Denoiser().to(device)
    model.unet.to(memory_format=torch.channels_last)  # 4 % faster on a CPU
    optimiser = Muon(model, options.lr)
    run = restored(options, model, average, optimiser, vae, log)
    alphas = build_scheduler().alphas_cumprod.to(device)
    scale = vae.config.scaling_factor
    place = stream or options.out
    ahead = Ahead(partial(keep_encodable, place), options.workers)

    def forget(number: int) -> None:
        latents_file(place, number).unlink(missing_ok=True)

    pool = Pool(
        run.first_shard, ahead, lambda number: encoded_shard(place, vae, number), None if stream else forget
    )

    def loss(step: int) -> Tensor:
        generator = keyed(options.seed + 1, step)
        known, latents, condition, poses = (
            x.to(device) for x in draw(pool.at(step), options.batch, generator)
        )
        return loss_of(model, (known, latents, condition, poses), step, scale, alphas, generator)

    descend(options, model, average, optimiser, run, loss, log)
    ahead.close()
    plot(log.path, options.out / "training.png")


def restored(
    options: Options,
    model: Denoiser,
    average: Denoiser,
    optimiser: torch.optim.Optimizer,
    vae: AutoencoderKL,
    log: Log,
    first_shard: int | None = None,
) -> Run:
    """The checkpoint's run; else a new one, from the weights that --start names or from nothing. first_shard: what a
    new one draws first, where that does not follow from the step."""
    found = resumed(options, model, average, optimiser, log)
    if found is not None:
        return found
    run, came_from = Run(), None
    if options.start is not None:
        made = started(model, options.start, vae)
        step = int(made["steps"])
        run = Run(
            step, int(made.get("samples", step * made["batch"])), step, newest_shard(step) - SHARDS_FIRST
        )
        if first_shard is not None:
            run = replace(run, first_shard=first_shard)
        came_from = made["sha256"][FILES["unet"]]
    average.load_state_dict(model.state_dict())
    log.write(
        stage="start", step=run.step, seed=options.seed, batch=options.batch, lr=options.lr, until=options.until,
        first_shard=run.first_shard, families=len(FAMILIES), models=len(keys(TRAIN)), unet_sha256=came_from,
    )  # fmt: skip
    return run


def started(model: Denoiser, folder: Path, vae: AutoencoderKL) -> dict[str, Any]:
    """A prior's weights into the model, for the latents of `vae`; returns its training.json."""
    made: dict[str, Any] = json.loads((folder / "training.json").read_text())
    shown = newest_shard(int(made["steps"])) - SHARDS_FIRST  # the shard that both VAEs are compared by
    for name, file in FILES.items():
        weights = {k: v.float() for k, v in load_file(folder / file).items()}
        if name == "unet":
            weights = translated(weights, folder / "vae", vae, shown)
        if name == "image_encoder":
            weights = deepened(weights, model.image_encoder)
        model.get_submodule(name).load_state_dict(weights)
    return made


def export(options: Options, folder: Path, share: float = 1.0) -> dict[str, str]:
    """Writes the averaged weights as a prior's folder, half precision; returns each file's SHA-256. share: of the way
    from those of options.start, which keeps more of what they knew (Wortsman et al. 2022, robust fine-tuning)."""
    average = Denoiser()
    run = averaged(options, average)
    blended = {}
    if share < 1.0:
        if options.start is None:
            raise UserError("a share of the way is one from --start's weights: name its folder")
        before = Denoiser()
        made = started(before, options.start, vae_of(options))
        blended = {"share": share, "from_unet_sha256": made["sha256"][FILES["unet"]]}
        follow(before, average, share)
        average = before
    average.half().eval()
    save_vae(options.out, folder)
    average.unet.save_pretrained(folder / "unet")
    average.image_encoder.save_pretrained(folder / "image_encoder")
    average.clip_camera_projection.save_pretrained(folder / "clip_camera_projection")
    build_scheduler().save_pretrained(folder / "scheduler")
    size = {"height": SIZE_PX, "width": SIZE_PX}
    CLIPImageProcessor(size=size, do_center_crop=False, image_mean=MEAN, image_std=STD).save_pretrained(
        folder / "feature_extractor"
    )
    index = {
        "_class_name": "Zero1to3StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "clip_camera_projection": ["guidance.zero123", "CameraProjection"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    sample = fixed_sample(Zero123(folder)).flatten().tolist()
    return record(
        options,
        run,
        folder,
        models=len(keys(TRAIN)),
        **blended,
        held_out=score(Zero123(folder), steps=2),
        fixed_sample=[round(v, 3) for v in sample],
    )


def main() -> None:
    parser = arguments(__doc__, "build/pocket", batch=128, lr=6e-4)
    parser.add_argument(
        "--branch", type=run_folder, help="a run's folder, whose checkpoint is cooled down in --out"
    )
    parser.add_argument("--cooling", type=int, default=300, help="steps that a branch takes")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the way from --start's weights that --export goes"
    )
    given = vars(parser.parse_args())
    folder, branch, cooling, share = (given.pop(x) for x in ("export", "branch", "cooling", "share"))
    options = Options(**given)
    with faults_of(parser):
        if folder:
            print(json.dumps(export(options, folder, share), indent=2))
            return
        torch.set_num_threads(options.threads)
        say_if_missing("procedural objects alone")
        if branch:
            branched(branch, options.out, cooling)
            shutil.copytree(branch / "vae", options.out / "vae", dirs_exist_ok=True)
        log = Log(options.out / "log.jsonl")
        if options.start is not None and not log.path.exists():
            log.path.write_text((options.start / "training.jsonl").read_text())
        train_unet(options, vae_of(options), log, branch)


if __name__ == "__main__":
    main()
