"""Trains the pocket text prior: `python -m guidance.pocket.train_text --out build/pocket-text --minutes 60`.

A Stable Diffusion in the published layout, small. A new run begins with the VAE, UNet and text encoder that ship, or
with those of --start; of a pocket Zero-1-to-3 with its VAE and its UNet, without the known view, and the text encoder
that ships. A run resumes from its folder by the same command.

B batch, C latent channels, L latent side. The loss is the mean squared error of v.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from guidance import POCKET_TEXT
from guidance.pocket.captions import save_tokenizer, vocabulary
from guidance.pocket.meshes import TRAIN, keys, say_if_missing
from guidance.pocket.model import TOKENS, TextDenoiser, build_scheduler
from guidance.pocket.model_captions import called
from guidance.pocket.muon import Muon
from guidance.pocket.plot import plot
from guidance.pocket.score_text import fixed_sample
from guidance.pocket.stream import Ahead, Pool, newest_shard
from guidance.pocket.text_stream import SLOTS, described, draw, keep_drawn
from guidance.pocket.train import save_vae, vae_of
from guidance.pocket.training import (
    DROP,
    STEPS_BEFORE,
    Log,
    Options,
    Run,
    arguments,
    autocast,
    averaged,
    checkpoint_of,
    checksums,
    descend,
    faults_of,
    keyed,
    noised,
    record,
    resumed,
    timesteps,
)
from guidance.stable_diffusion import WORDS, StableDiffusion

UNET = "unet/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"
PACE = 4  # a new shard for four that the view prior's training takes: words want steps more than objects
BEFORE = 16  # shards that a run begins with
PIECES = "embeddings.token_embedding.weight"  # of a text encoder


def train(options: Options, log: Log, models: bool = False) -> None:
    """Trains until the minutes or the steps are over, saving every few minutes; models: on those too."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    options = replace(options, start=options.start or POCKET_TEXT)
    vae = vae_of(options)
    tokenizer = tokenizer_of(options.out, models)
    model, average = (built(tokenizer, vae).to(device) for _ in range(2))
    optimiser = Muon(model, options.lr)
    run = resumed(options, model, average, optimiser, log) or begun(options, model, average, tokenizer, log)
    alphas = build_scheduler().alphas_cumprod.to(device)
    scale = vae.config.scaling_factor
    ahead = Ahead(partial(keep_drawn, options.out, models=models), options.workers)
    pool = Pool(run.first_shard, ahead, lambda number: described(options.out, vae, number, models))

    def loss(step: int) -> Tensor:
        generator = keyed(options.seed + 2, step)
        latents, sentences = draw(pool.at(step // PACE), options.batch, generator, DROP)
        ids = pieces(tokenizer, sentences).to(device)
        return loss_of(model, latents.to(device) * scale, ids, alphas, generator)

    descend(options, model, average, optimiser, run, loss, log)
    ahead.close()
    plot(log.path, options.out / "training.png")


def tokenizer_of(out: Path, models: bool) -> CLIPTokenizer:
    """The run's, made where there is none; models: with the words of their names."""
    if not (out / WORDS).exists():  # written last
        save_tokenizer(out / "tokenizer", out, models)
    return CLIPTokenizer.from_pretrained(out / "tokenizer")


def built(tokenizer: CLIPTokenizer, vae: AutoencoderKL) -> TextDenoiser:
    return TextDenoiser(len(tokenizer), int(vae.config.latent_channels))


def pieces(tokenizer: CLIPTokenizer, sentences: list[str]) -> Tensor:
    """[K, TOKENS] of K sentences."""
    told = tokenizer(sentences, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    return told.input_ids


def loss_of(
    model: TextDenoiser, latents: Tensor, ids: Tensor, alphas: Tensor, generator: torch.Generator
) -> Tensor:
    """The mean squared error of v [] for scaled latents [B, C, L, L] and their sentences' pieces [B, TOKENS], at levels
    and under noise that the generator draws, on its own device."""
    device = latents.device
    t = timesteps(STEPS_BEFORE, len(latents), generator).to(device)
    noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(device)
    noisy, target = noised(latents, noise, t, alphas)
    with autocast(device):
        v = model(noisy, t, ids)
    return F.mse_loss(v.float(), target)


def begun(
    options: Options, model: TextDenoiser, average: TextDenoiser, tokenizer: CLIPTokenizer, log: Log
) -> Run:
    """A new run: a text prior's weights, the shipped ones if none are named, or a view prior's UNet without its known
    view. Words that the tokenizer knows and the weights do not begin from nothing."""
    run = Run(first_shard=newest_shard(0) - BEFORE)
    start = options.start or POCKET_TEXT
    weights = {k: v.float() for k, v in load_file(start / UNET).items()}
    channels = model.unet.config.in_channels
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :channels]  # without a known view's
    model.unet.load_state_dict(weights)
    told = start
    if (start / ENCODER).exists():
        made = json.loads((start / "training.json").read_text())
        step = int(made["steps"])
        run = Run(step, int(made["samples"]), step, newest_shard(step // PACE) - BEFORE)
    else:
        told = POCKET_TEXT
    words = {k: v.float() for k, v in load_file(told / ENCODER).items()}
    old, fresh = CLIPTokenizer.from_pretrained(told / "tokenizer"), model.text_encoder.state_dict()[PIECES]
    words[PIECES] = carried(words[PIECES], old, tokenizer, fresh)
    model.text_encoder.load_state_dict(words)
    average.load_state_dict(model.state_dict())
    log.write(
        stage="start", step=run.step, seed=options.seed, batch=options.batch, lr=options.lr, until=options.until,
        first_shard=run.first_shard, slots=len(SLOTS), unet_sha256=checksums(start)[UNET],
    )  # fmt: skip
    return run


def carried(known: Tensor, old: CLIPTokenizer, new: CLIPTokenizer, fresh: Tensor) -> Tensor:
    """Rows [M, E] for the new tokenizer's pieces: of `known` for those that the old one has too, else of `fresh`."""
    rows, before = fresh.clone(), old.get_vocab()
    for piece, row in new.get_vocab().items():
        if piece in before:
            rows[row] = known[before[piece]]
    return rows


def export(options: Options, folder: Path) -> dict[str, str]:
    """Writes the averaged weights as a prior's folder, half precision; returns each file's SHA-256."""
    checkpoint_of(options.out)
    tokenizer = CLIPTokenizer.from_pretrained(options.out / "tokenizer")
    average = built(tokenizer, AutoencoderKL.from_pretrained(options.out / "vae"))
    run = averaged(options, average)
    # one that was trained by the clock, on a GPU, knows it
    run = replace(run, newest_shard=run.newest_shard or newest_shard(run.step // PACE))
    average.half().eval()
    average.unet.save_pretrained(folder / "unet")
    average.text_encoder.save_pretrained(folder / "text_encoder")
    save_vae(options.out, folder)
    shutil.copytree(options.out / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    shutil.copy(options.out / WORDS, folder / WORDS)
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
    words = set((folder / WORDS).read_text().split())
    models = len(keys(TRAIN)) if set(vocabulary(called(TRAIN))) <= words else 0
    return record(options, run, folder, models=models, fixed_sample=[round(v, 3) for v in sample])


def main() -> None:
    parser = arguments(__doc__, "build/pocket-text", batch=64)
    parser.add_argument(
        "--models", action="store_true", help="three of four objects models; a new run's folder"
    )
    given = vars(parser.parse_args())
    folder, models = given.pop("export"), given.pop("models")
    options = Options(**given)
    with faults_of(parser):
        if folder:
            print(json.dumps(export(options, folder), indent=2))
            return
        torch.set_num_threads(options.threads)
        if models:
            say_if_missing("procedural objects alone")
        train(options, Log(options.out / "log.jsonl"), models)


if __name__ == "__main__":
    main()
