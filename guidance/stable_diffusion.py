"""Stable Diffusion guidance (Rombach et al. 2022) from a diffusers-format folder: published weights or the pocket ones.

V views, D directions, T tokens, E embedding width, C latent channels, L latent side; vocabulary and formulas of
diffusion.py. A view is told to the prior in words: the prompt goes on with the name of the side that is seen (Poole et
al. 2022), which is what keeps a face from growing on every side. The camera codes are Zero-1-to-3's, as everywhere.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from guidance.diffusion import LatentDiffusion
from guidance.folder import TEXT, TOKENIZER, network, unread_of

WORDS = "words.txt"  # what a prior with a small vocabulary was trained with, a word a line


@dataclass(frozen=True)
class Directions:
    """Which words name a view. Azimuths are from the front, growing to the object's own left; degrees.

    front_deg: width of the front's and of the back's sector, in (0, 180); overhead_deg: elevation from which a view is
    one from above. names: front, left, right, back, overhead. The sides differ (DreamFusion's do not): `side view`
    alone leaves open which way an animal looks.
    """

    front_deg: float = 90.0
    overhead_deg: float = 60.0
    names: tuple[str, ...] = (
        "front view",
        "left side view",
        "right side view",
        "back view",
        "overhead view",
    )

    @property
    def endings(self) -> tuple[str, ...]:
        """What a prompt goes on with for each name."""
        return tuple(f", {name}" for name in self.names)

    def __call__(self, azimuths_rad: Tensor, elevations_rad: Tensor) -> Tensor:
        """[V] indices into names."""
        turn = torch.rad2deg(torch.atan2(azimuths_rad.sin(), azimuths_rad.cos()))
        half = self.front_deg / 2
        side = torch.where(turn > 0, 1, 2)
        side = torch.where(turn.abs() <= half, 0, side)
        side = torch.where(turn.abs() >= 180 - half, 3, side)
        return torch.where(torch.rad2deg(elevations_rad) >= self.overhead_deg, 4, side)


def words_of(sentence: str) -> list[str]:
    """Its words in small letters: letters, marks and digits of any script that stand together; each emoji is one."""
    kinds = [(letter, unicodedata.category(letter)) for letter in sentence.lower() if letter != "\ufe0f"]
    return "".join(x if kind[0] in "LMN" else f" {x} " if kind == "So" else " " for x, kind in kinds).split()


@dataclass(frozen=True)
class Prompted:
    """What the prior is told: given [D, T, E], the prompt from each direction; without [1, T, E], the negative prompt.
    elevation_rad: of the view that camera codes are relative to."""

    given: Tensor
    without: Tensor
    directions: Directions
    elevation_rad: float


class StableDiffusion(LatentDiffusion):
    """The frozen prior. Its two working methods are `embed` and `sds_grad`; `refine` serves the second stage."""

    family = TEXT

    def __init__(
        self, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ):
        """Loads unet, vae, tokenizer, text_encoder and scheduler from a folder or hub id.

        Raises UserError when a part is missing, naming it.
        """
        super().__init__(folder, device, dtype)

    def load(self, source: str) -> list[nn.Module]:
        if lacking := unread_of(Path(source) / TOKENIZER):
            raise OSError(f"{TOKENIZER} has no {lacking}")
        self.tokenizer = CLIPTokenizer.from_pretrained(source, subfolder=TOKENIZER)
        self.encoder = network(CLIPTextModel, Path(source), "text_encoder", self.dtype, "dtype")
        self.token_size = int(self.encoder.config.hidden_size)
        words = Path(source) / WORDS
        self.words = words.read_text(encoding="utf-8").split() if words.exists() else []
        self.length = int(self.encoder.config.max_position_embeddings)
        return [self.encoder]

    def unseen(self, sentence: str) -> list[str]:
        """The sentence's words, of any script, and emojis, that this prior was never trained with; none where it keeps
        no list of them."""
        found = words_of(sentence)
        return [word for word in dict.fromkeys(found) if self.words and word not in self.words]

    def fitted(self, sentence: str, endings: Sequence[str] = ("",)) -> tuple[str, str]:
        """(what is read, what is not) of a sentence that goes on with any of these endings, which are never cut.

        Where it is too long for the encoder, it ends after a word, or a letter where there is but one word.
        """

        def too_long(kept: str) -> bool:
            texts = [kept + ending for ending in endings]
            return max(len(ids) for ids in self.tokenizer(texts, verbose=False).input_ids) > self.length

        def over(letters: int) -> bool:
            return too_long(sentence[:letters].rstrip(" ,;"))

        if not too_long(sentence):
            return sentence, ""
        words = [found.start() for found in re.finditer(r"(?<=\S)\s+", sentence)]
        last = bisect_left(words, True, key=over) - 1
        end = words[last] if last >= 0 else bisect_left(range(len(sentence)), True, key=over) - 1
        return sentence[:end].rstrip(" ,;"), sentence[end:].strip()

    @torch.no_grad()
    def tokens(self, sentences: Sequence[str]) -> Tensor:
        """Their embeddings [len(sentences), T, E]; what is longer than the encoder reads is cut off: see `fitted`."""
        ids = self.tokenizer(
            list(sentences),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        ).input_ids
        return self.encoder(ids.to(self.device)).last_hidden_state

    def embed(
        self,
        prompt: str,
        negative_prompt: str = "",
        directions: Directions | None = None,
        elevation_rad: float = 0.0,
    ) -> Prompted:
        """What the views are conditioned on; elevation_rad: of the view that camera codes are relative to."""
        directions = directions or Directions()
        prompt = self.fitted(prompt, directions.endings)[0]
        given = self.tokens([prompt + ending for ending in directions.endings])
        without = self.tokens([self.fitted(negative_prompt)[0]])
        return Prompted(given, without, directions, elevation_rad)

    def output(
        self, noisy: Tensor, conditioning: Prompted, cameras: Tensor, t: Tensor, guidance_scale: float
    ) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022) in one UNet call of 2V; a scale of 1 or 0 needs V only."""
        latents, given = noisy.to(self.dtype), self.seen(conditioning, cameras)
        without = conditioning.without.expand_as(given)
        if guidance_scale in (0.0, 1.0):
            return self.unet(latents, t, given if guidance_scale else without).sample.float()
        both = self.unet(latents.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([without, given])).sample.float()
        plain, told = both.chunk(2)
        return plain + guidance_scale * (told - plain)

    def seen(self, conditioning: Prompted, cameras: Tensor) -> Tensor:
        """[V, T, E]: the prompt as each camera code [V, 4] sees it."""
        azimuths = torch.atan2(cameras[:, 1], cameras[:, 2])
        which = conditioning.directions(azimuths, conditioning.elevation_rad - cameras[:, 0])
        return conditioning.given[which.to(conditioning.given.device)]
