"""Trains the pocket text prior: `python -m guidance.pocket.train_text --out build/pocket-text --minutes 60`.

A Stable Diffusion in the published layout, small: its own VAE as it ships, the shipped UNet and text encoder as a
beginning, or with --start a pocket Zero-1-to-3's UNet of as many latent channels, without the known view's, and a text
encoder from nothing. A run resumes from its folder by the same command.

B batch, C latent channels, L latent side. The loss is the mean squared error of v.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from guidance import POCKET_TEXT
from guidance.pocket.captions import save_tokenizer
from guidance.pocket.model import TEXT_LATENTS, TOKENS, TextDenoiser, build_scheduler
from guidance.pocket.plot import plot
from guidance.pocket.score_text import fixed_sample
from guidance.pocket.stream import SHARDS_FIRST, Ahead, Pool, newest_shard
from guidance.pocket.text_stream import SLOTS, described, draw, keep_drawn
from guidance.pocket.training import (
    DROP,
    Log,
    Options,
    Run,
    arguments,
    autocast,
    averaged,
    checksums,
    descend,
    keyed,
    noised,
    record,
    resumed,
    timesteps,
)
from guidance.stable_diffusion import StableDiffusion

UNET = "unet/diffusion_pytorch_model.safetensors"
STEPS_BEFORE = 100_000  # the noise levels' warm-up is over: the UNet has been trained


def train(options: Options, log: Log, models: bool = False) -> None:
    """Trains until the minutes or the steps are over, saving every few minutes; models: on those too."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    vae = AutoencoderKL.from_pretrained(POCKET_TEXT / "vae", torch_dtype=torch.float32)
    if not (options.out / "tokenizer").exists():
        save_tokenizer(options.out / "tokenizer", options.out, models)
    tokenizer = CLIPTokenizer.from_pretrained(options.out / "tokenizer")
    model, average = TextDenoiser(len(tokenizer)).to(device), TextDenoiser(len(tokenizer)).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=0.01)
    run = resumed(options, model, average, optimiser, log) or begun(options, model, average, log)
    alphas = build_scheduler().alphas_cumprod.to(device)
    scale = vae.config.scaling_factor
    ahead = Ahead(partial(keep_drawn, options.out, models=models), options.workers)
    pool = Pool(run.first_shard, ahead, lambda number: described(options.out, vae, number, models))

    def loss_of(step: int) -> Tensor:
        generator = keyed(options.seed + 2, step)
        latents, sentences = draw(pool.at(step), options.batch, generator, DROP)
        ids = tokenizer(
            sentences, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).input_ids.to(device)
        t = timesteps(STEPS_BEFORE, options.batch, generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        noisy, target = noised(latents.to(device) * scale, noise, t, alphas)
        with autocast(device):
            v = model(noisy, t, ids)
        return F.mse_loss(v.float(), target)

    descend(options, model, average, optimiser, run, loss_of, log)
    ahead.close()
    plot(log.path, options.out / "training.png")


def begun(options: Options, model: TextDenoiser, average: TextDenoiser, log: Log) -> Run:
    """A new run: a text prior's weights, the shipped ones if none are named, or a view prior's UNet without its known
    view."""
    run = Run(first_shard=newest_shard(0) - SHARDS_FIRST)
    start = options.start or POCKET_TEXT
    weights = load_file(start / UNET)
    weights = {k: v.float() for k, v in weights.items()}
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :TEXT_LATENTS]
    model.unet.load_state_dict(weights)
    if (start / "text_encoder").exists():
        words = load_file(start / "text_encoder" / "model.safetensors")
        model.text_encoder.load_state_dict({k: v.float() for k, v in words.items()})
        made = json.loads((start / "training.json").read_text())
        step = int(made["steps"])
        run = Run(step, int(made["samples"]), step, newest_shard(step) - SHARDS_FIRST)
    average.load_state_dict(model.state_dict())
    log.write(
        stage="start", step=run.step, seed=options.seed, batch=options.batch, lr=options.lr, until=options.until,
        first_shard=run.first_shard, slots=len(SLOTS), unet_sha256=checksums(start)[UNET],
    )  # fmt: skip
    return run


def export(options: Options, folder: Path) -> dict[str, str]:
    """Writes the averaged weights as a prior's folder, half precision; returns each file's SHA-256."""
    tokenizer = CLIPTokenizer.from_pretrained(options.out / "tokenizer")
    average = TextDenoiser(len(tokenizer))
    run = averaged(options, average)
    average.half().eval()
    average.unet.save_pretrained(folder / "unet")
    average.text_encoder.save_pretrained(folder / "text_encoder")
    if folder.resolve() != POCKET_TEXT.resolve():  # a copy: links are lost in a zip and in some checkouts
        shutil.copytree(POCKET_TEXT / "vae", folder / "vae", dirs_exist_ok=True)
    shutil.copytree(options.out / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    shutil.copy(options.out / "words.txt", folder / "words.txt")
    build_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    sample = fixed_sample(StableDiffusion(folder)).flatten().tolist()
    return record(options, run, folder, fixed_sample=[round(v, 3) for v in sample])


def main() -> None:
    parser = arguments(__doc__, "build/pocket-text", batch=64)
    parser.add_argument(
        "--models", action="store_true", help="every second object a model; a new run's folder"
    )
    given = vars(parser.parse_args())
    folder, models = given.pop("export"), given.pop("models")
    options = Options(**given)
    if folder:
        print(json.dumps(export(options, folder), indent=2))
        return
    torch.set_num_threads(options.threads)
    train(options, Log(options.out / "log.jsonl"), models)


if __name__ == "__main__":
    main()
