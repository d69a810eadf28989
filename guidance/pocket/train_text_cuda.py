"""Trains the pocket text prior on a GPU: `python -m guidance.pocket.train_text_cuda --out build/text-cuda --minutes 5`.

The network, stream and loss of train_text.py as train_cuda.py arranges its own, see clock.py; three of four objects are
models where their folder is there. A new run begins with the view prior that ships, its VAE and UNet, and the text
encoder that ships; --start names another prior's folder. The same command goes on from the end of the last one, on
other objects.
B objects of a shard, V views, W wordings of a view, C latent channels, L latent side, S picture side in pixels.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from gs_propeller.base.processes import pool_of
from guidance import POCKET
from guidance.pocket.clock import (
    Arrivals,
    Replay,
    Resident,
    Sample,
    Tensors,
    chance,
    compiled,
    descend,
    encoded,
    fast,
    frozen,
)
from guidance.pocket.meshes import TRAIN, keys
from guidance.pocket.model import TOKENS, build_scheduler
from guidance.pocket.muon import Muon
from guidance.pocket.stream import humbly, save
from guidance.pocket.text_stream import OBJECTS, VIEWS, drawn, sentence
from guidance.pocket.train import vae_of
from guidance.pocket.train_cuda import gpu_arguments, newest, without_a_gpu
from guidance.pocket.train_text import begun, built, loss_of, pieces, tokenizer_of
from guidance.pocket.training import DROP, Log, Options, resumed
from guidance.stable_diffusion import Directions

WORDINGS = 4  # of each view, drawn once


@cache
def reader(folder: Path) -> CLIPTokenizer:
    """The run's tokenizer: loaded once a process."""
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


def keep_told(out: Path, models: bool, number: int) -> None:
    """Shard `number` is in out/shards when this returns: its pictures [B, V, 3, S, S] uint8, and what is said of them,
    ids [B, V, W, TOKENS] int16, as pieces of the run's tokenizer."""
    images, where, captions = drawn(number, models=models)
    names, rng = Directions(), np.random.default_rng([number, 84])
    which = names(where[..., 0].flatten(), where[..., 1].flatten()).tolist()
    sentences = [
        sentence(captions[k // VIEWS], names.names[view], rng, 0.0)
        for k, view in enumerate(which)
        for _ in range(WORDINGS)
    ]
    ids = pieces(reader(out), sentences).to(torch.int16)
    ids = ids.reshape(len(images), VIEWS, WORDINGS, TOKENS)
    save(out / "shards" / f"shard{number:04d}.safetensors", {"images": images, "ids": ids})


def resident(capacity: int, device: torch.device, vae: AutoencoderKL) -> Resident:
    """latents [N, V, C, L, L] half, unscaled; ids [N, V, W, TOKENS] int16."""
    channels, side = int(vae.config.latent_channels), int(vae.config.sample_size)
    side = side // 2 ** (len(vae.config.block_out_channels) - 1)
    return Resident(
        capacity, device,
        latents=((VIEWS, channels, side, side), torch.float16), ids=((VIEWS, WORDINGS, TOKENS), torch.int16),
    )  # fmt: skip


def draw(held: Resident, count: int, generator: torch.Generator, empty: Tensor) -> tuple[Tensor, Tensor]:
    """(latents [count, C, L, L], their sentences' pieces [count, TOKENS]); a share DROP of them is the empty one's."""
    rows = held.some(count, generator)
    views, wordings = (held.below(end, count, generator) for end in (VIEWS, WORDINGS))
    ids = held.rows["ids"][rows, views, wordings].long()
    dropped = torch.rand(count, 1, generator=generator, device=held.device) < DROP
    return held.rows["latents"][rows, views].float(), torch.where(dropped, empty, ids)


def train(options: Options, ends_s: float, first: int, drawn: list[Future[None]], models: bool) -> None:
    """Compiles, then trains until the clock says ends_s."""
    torch.manual_seed(options.seed)
    device, log = torch.device(options.device), Log(options.out / "log.jsonl")
    fast()
    vae, tokenizer = vae_of(options), tokenizer_of(options.out, models)
    model, average = (built(tokenizer, vae).to(device) for _ in range(2))
    model.unet.to(memory_format=torch.channels_last)
    optimiser = Muon(model, options.lr, fused=device.type == "cuda")
    run = resumed(options, model, average, optimiser, log) or begun(options, model, average, tokenizer, log)
    alphas, scale = build_scheduler().alphas_cumprod.to(device), float(vae.config.scaling_factor)
    generator = chance(device)
    empty = pieces(tokenizer, [""]).to(device)
    held = resident(OBJECTS * len(drawn), device, vae)
    vae = frozen(vae, device)

    def add(shard: Tensors) -> int:
        held.add(latents=encoded(vae, shard["images"], device), ids=shard["ids"])
        return held.count

    def loss(drawn: Sample) -> Tensor:
        return loss_of(model, drawn[0] * scale, drawn[1], alphas, generator)

    blank = torch.zeros(options.batch, *held.rows["latents"].shape[2:], device=device)
    sample = blank, empty.expand(options.batch, -1)
    compiled(model, model.unet, lambda: loss(sample), log)
    replay = Replay(model, loss, sample, log)
    arrivals = Arrivals(options.out / "shards", drawn, first)
    descend(
        options, ends_s, model, average, optimiser, run, arrivals, add,
        lambda: replay(draw(held, options.batch, generator, empty)), log,
    )  # fmt: skip


def main() -> None:
    parser = gpu_arguments(__doc__, "build/text-cuda", 5.0)
    parser.add_argument(
        "--shards", type=int, default=600, help="shards drawn at most, all of them kept in memory"
    )
    given = vars(parser.parse_args())
    count = given.pop("shards")
    options = Options(**given)
    if without_a_gpu(options):
        parser.error("there is no CUDA device here; `python -m guidance.pocket.train_text` trains on a CPU")
    options = replace(options, start=options.start or POCKET)
    ends_s, models = time.time() + options.minutes * 60, bool(keys(TRAIN))
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    tokenizer_of(options.out, models)
    pool = pool_of(options.workers)
    first = newest(options.out)
    keep = partial(humbly, partial(keep_told, options.out, models))
    train(options, ends_s, first, [pool.submit(keep, first + k) for k in range(count)], models)
    pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
