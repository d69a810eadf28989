"""A small image-text retrieval model, the judge of bench.text: `python -m bench.retrieval --minutes 15` trains it.

A CLIP (Radford et al. 2021) in the published layout, trained apart from the priors, on objects of its own seeds, every
second one a model where their folder is there (guidance/pocket/meshes.py), and never used as guidance. B pairs of a
batch, V views, S picture side in pixels. Prints one JSON object: how often it finds the right one of 30 captions for
true views of objects that it was not trained on, and of models of the test split.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from gs_propeller.base.camera import orbit
from guidance.pocket.captions import (
    articled,
    build_tokenizer,
    corpus,
    said,
    save_tokenizer,
    strayed,
    vocabulary,
)
from guidance.pocket.data import SIZE_PX
from guidance.pocket.families import make
from guidance.pocket.meshes import TEST, TRAIN, keys, lit, read, say_if_missing
from guidance.pocket.model import TOKENS
from guidance.pocket.model_captions import called, caption
from guidance.pocket.muon import Muon
from guidance.pocket.render import FOV_Y_RAD, RADIUS, Shown, on_white, views
from guidance.pocket.score_text import TEST_SEED
from guidance.pocket.text_stream import SLOTS, STRAYED, angles, centred, model_told, spoken
from guidance.pocket.train_text import PIECES as TEXT_PIECES
from guidance.pocket.train_text import carried
from guidance.pocket.training import MEAN, STD, autocast, checksums, keyed

PIECES = f"text_model.{TEXT_PIECES}"
POCKET_JUDGE = Path(__file__).resolve().parent.parent / "data" / "retrieval-pocket"
SEED = 500_000_000  # of its objects: the priors' are below
OBJECTS, VIEWS = 4096, 4  # of the pool that batches come from; a quarter is drawn anew each epoch
BATCH, EPOCH = 128, 128  # pairs; steps


@dataclass(frozen=True)
class Judge:
    """Embeds pictures and sentences; the published CLIP models do as well."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def pictures(self, images: Tensor) -> Tensor:
        """images [V, 3, H, W] over white in 0..1 -> unit vectors [V, E]."""
        return F.normalize(self.features(images), dim=1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The same before they are made unit vectors."""
        side = self.model.config.vision_config.image_size
        pixels = F.interpolate(
            images, (side, side), mode="bicubic", align_corners=False, antialias=images.shape[-1] > side
        )
        features = self.model.get_image_features(pixel_values=(pixels.clamp(0, 1) - self.mean) / self.std)
        return _pooled(features)

    @torch.no_grad()
    def sentences(self, texts: list[str]) -> Tensor:
        """Unit vectors [len(texts), E]."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        features = self.model.get_text_features(tokens.input_ids, tokens.attention_mask)
        return F.normalize(_pooled(features), dim=1)

    def chosen(self, images: Tensor, texts: list[str]) -> Tensor:
        """[V] which text each picture is nearest to."""
        return self.nearest(self.features(images), texts)

    def nearest(self, features: Tensor, texts: list[str]) -> Tensor:
        """The same of features [V, E]."""
        return (F.normalize(features, dim=1) @ self.sentences(texts).T).argmax(1)


def _pooled(features: object) -> Tensor:
    return features if isinstance(features, Tensor) else features.pooler_output  # type: ignore[attr-defined]


def load_judge(folder: str | Path = POCKET_JUDGE) -> Judge:
    """The shipped judge, or a published CLIP from a folder or the cache. Raises OSError where it is not there."""
    model = (
        CLIPModel.from_pretrained(folder).float().eval()
    )  # kept in half, in which a CPU is ten times as slow
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return Judge(model, CLIPTokenizer.from_pretrained(folder), mean, std)


def build(vocabulary: int) -> CLIPModel:
    """Two towers of 128: 64 patches of a picture, 32 pieces of a sentence."""
    tower = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "projection_dim": 128}
    text = {"vocab_size": vocabulary, "max_position_embeddings": TOKENS, "num_hidden_layers": 3}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"image_size": SIZE_PX, "patch_size": 8, "num_hidden_layers": 4}
    return CLIPModel(
        CLIPConfig(text_config=tower | text | ends, vision_config=tower | vision, projection_dim=128)
    )


def seen(seed: int, count: int = VIEWS) -> tuple[str, Tensor]:
    """A procedural object's caption, and `count` views [V, 3, S, S] uint8 of it from anywhere."""
    family = SLOTS[seed % len(SLOTS)]
    return shown(spoken(family, seed), make(family, seed).caption, seed, count)


def trained_on(seed: int) -> tuple[str, Tensor]:
    """The same of a training object: every second one is a model."""
    if seed % 2 and called(TRAIN):
        return shown(*model_told(seed, bent=0.5), seed, VIEWS)
    return seen(seed // 2)


def shown(thing: Shown, caption: str, seed: int, count: int) -> tuple[str, Tensor]:
    rng = np.random.default_rng([seed, 80])
    where = torch.tensor([angles(rng) for _ in range(count)])
    cameras = orbit(where[:, 0], where[:, 1], RADIUS, FOV_Y_RAD)
    return caption, (on_white(views(thing, cameras, SIZE_PX)) * 255 + 0.5).to(torch.uint8)


def softened(images: Tensor, generator: torch.Generator) -> Tensor:
    """images [B, 3, S, S] over white in 0..1 as assets show them: a little nearer or farther, off the middle, less
    sharp, each by itself."""
    zoom, right, down, blur = torch.rand(4, len(images), generator=generator)
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = 0.88 + 0.24 * zoom
    affine[:, 0, 2], affine[:, 1, 2] = 0.12 * (right - 0.5), 0.12 * (down - 0.5)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(1 - images, grid, align_corners=False)  # outside is white
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = torch.outer(row, row).expand(3, 1, 5, 5)
    share = blur[:, None, None, None]
    return 1 - torch.lerp(moved, F.conv2d(moved, kernel, padding=2, groups=3), share)


def train(
    minutes: float, seed: int = 0, steps: int = 1_000_000, start: Path | None = None
) -> tuple[CLIPModel, CLIPTokenizer, int]:
    """The contrastive loss over batches of different objects, until the minutes or the steps are over. start: a judge's
    folder, whose weights it begins with, and after whose objects. Returns model, tokenizer and the steps made, those of
    `start` among them."""
    torch.manual_seed(seed)
    done = json.loads((start / "training.json").read_text())["steps"] if start is not None else 0
    first = SEED + done // EPOCH * (OBJECTS // 4)
    tokenizer = build_tokenizer(vocabulary(corpus(with_models=True)))
    model = build(len(tokenizer))
    if start is not None:
        before = load_judge(start)
        weights = before.model.state_dict()
        weights[PIECES] = carried(weights[PIECES], before.tokenizer, tokenizer, model.state_dict()[PIECES])
        model.load_state_dict(weights)
    optimiser = Muon(model, 1e-3)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    pool = [trained_on(first + k) for k in range(OBJECTS)]
    losses: list[float] = []
    drawn, step, begun_s = OBJECTS, 0, time.monotonic()
    while (spent := max((time.monotonic() - begun_s) / 60 / minutes, step / steps)) < 1:
        if step and step % EPOCH == 0:
            for _ in range(OBJECTS // 4):
                pool[drawn % OBJECTS] = trained_on(first + drawn)
                drawn += 1
            print(
                f"step {step}, {drawn} objects, loss {np.mean(losses[-EPOCH:]):.3f}, {spent:.0%}", flush=True
            )
        generator = keyed(seed, done + step)
        rng = np.random.default_rng([seed, done + step])
        rows = torch.randperm(OBJECTS, generator=generator)[:BATCH].tolist()
        which = torch.randint(VIEWS, (BATCH,), generator=generator).tolist()
        images = torch.stack([pool[r][1][v] for r, v in zip(rows, which, strict=True)]).float() / 255
        images = softened(images, generator)
        texts = [said(pool[r][0], rng) if rng.random() < 0.5 else articled(pool[r][0]) for r in rows]
        texts = [strayed(text, rng) if rng.random() < STRAYED else text for text in texts]
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 100) * max(0.02, 1.0 - spent)
        with autocast(torch.device("cpu")):
            loss = model(
                tokens.input_ids, (images - mean) / std, tokens.attention_mask, return_loss=True
            ).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        step += 1
    return model.eval(), tokenizer, done + step


def accuracy(judge: Judge, groups: int = 20, size: int = 30) -> float:
    """Share of true views, of objects not trained on, whose caption it finds among `size`."""
    right = []
    for group in range(groups):
        cases = [seen(TEST_SEED + group * size + k, 2) for k in range(size)]
        right.append(share_right(judge, cases))
    return float(np.mean(right))


def share_right(judge: Judge, cases: list[tuple[str, Tensor]]) -> float:
    """Of (caption, views [V, 3, S, S] uint8): for how many first views it finds the caption among all of these."""
    images = torch.stack([views[0] for _, views in cases]).float() / 255
    found = judge.chosen(images, [articled(caption) for caption, _ in cases])
    return float((found == torch.arange(len(cases))).float().mean())


def model_accuracy(judge: Judge, groups: int = 20, size: int = 30) -> float:
    """The same of test models whose nouns are trained on, each among models of other nouns; nan without models."""
    known, right = called(TRAIN), []
    nouns = {name: models for name, models in called(TEST).items() if name in known}
    for group in range(groups if len(nouns) >= size else 0):
        rng = np.random.default_rng([TEST_SEED, group])
        names = [list(nouns)[k] for k in rng.permutation(len(nouns))[:size]]
        meshes = [lit(read(nouns[name][int(rng.integers(len(nouns[name])))]), rng) for name in names]
        cases = [shown(centred(m), caption(m) or "", TEST_SEED + k, 1) for k, m in enumerate(meshes)]
        right.append(share_right(judge, cases))
    return float(np.mean(right)) if right else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="trains that long; 0 only scores")
    parser.add_argument("--start", type=Path, help="a judge's folder, whose weights the training begins with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=POCKET_JUDGE)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    record: dict[str, object] = {}
    if given.minutes:
        say_if_missing("no nouns are trained")
        model, _, steps = train(given.minutes, start=given.start)
        model.half().save_pretrained(given.folder)
        save_tokenizer(given.folder, given.folder, with_models=True)
        record |= {
            "seed": 0,
            "steps": steps,
            "batch": BATCH,
            "models": len(keys(TRAIN)),
            "sha256": checksums(given.folder),
        }
    judge = load_judge(given.folder)
    figures = {"top1_of_30": round(accuracy(judge), 3), "models_top1_of_30": round(model_accuracy(judge), 3)}
    if record:
        (given.folder / "training.json").write_text(json.dumps(record | figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
