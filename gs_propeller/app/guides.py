"""The priors that a configuration asks for, loaded, and what each is told of the asset."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from gs_propeller.app.config import Config
from gs_propeller.app.devices import half_of, precision_of
from gs_propeller.app.events import Say
from gs_propeller.app.fingerprint import fingerprint, given_bytes
from gs_propeller.app.plan import phases_of
from gs_propeller.base.errors import UserError
from gs_propeller.distil.pull import Guide
from gs_propeller.distil.symmetry import variants
from gs_propeller.pictures.picture import Picture, load_picture
from guidance import find_prior, find_text_prior
from guidance.folder import local_folder

if TYPE_CHECKING:
    from guidance.stable_diffusion import StableDiffusion
    from guidance.zero123 import Zero123


@dataclass(frozen=True)
class Priors:
    """The view prior, for a picture, and the text prior, for a prompt; at least one of them."""

    zero123: Zero123 | None
    text: StableDiffusion | None

    @property
    def first(self) -> Zero123 | StableDiffusion:
        """The picture's where there is one."""
        prior = self.zero123 or self.text
        assert prior is not None
        return prior


def find_priors(config: Config, announce: Say | None = None) -> tuple[str | None, str | None]:
    """Folders or hub ids of the view prior and the text prior, None where none is asked for. announce(line): told which
    ones auto took. Raises UserError."""
    if not config.input and not config.prompt:
        raise UserError("nothing to make an asset of: give input=PICTURE or prompt=SENTENCE")
    if config.prompt and not any(unicodedata.category(letter)[0] in "LNS" for letter in config.prompt):
        raise UserError(f"prompt={config.prompt!r} says nothing: it has no letter, digit or emoji")
    return (
        find_prior(config.prior, announce) if config.input else None,
        find_text_prior(config.text_prior, announce) if config.prompt else None,
    )


def fetch_priors(config: Config) -> None:
    """What find_priors finds is whole on this machine when this returns: for the process that starts the ranks. Raises
    UserError."""
    for source in find_priors(config):
        if source is not None:
            local_folder(source, half_of(config))


def load_priors(config: Config, device: torch.device, announce: Say | None = None) -> Priors:
    """What find_priors found, on the device. Raises UserError."""
    view, text = find_priors(config, announce)
    return Priors(
        load_view_prior(config, device, view) if view else None,
        _text_prior(config, device, text) if text else None,
    )


def load_view_prior(config: Config, device: torch.device, folder: str) -> Zero123:
    """The picture's prior from that folder or hub id. Raises UserError."""
    from guidance.zero123 import Zero123  # takes seconds: after what may be wrong with the input

    prior = Zero123(folder, device, precision_of(config, device), config.camera_code)
    prior.tune(config.compile, config.attention_slicing)
    return prior


def _text_prior(config: Config, device: torch.device, folder: str) -> StableDiffusion:
    from guidance.stable_diffusion import StableDiffusion

    prior = StableDiffusion(folder, device, precision_of(config, device))
    prior.tune(config.compile, config.attention_slicing)
    return prior


def picture_of(config: Config) -> Picture | None:
    """The input picture, None for a prompt alone. Raises UserError."""
    cut = config.sections.cut
    if not config.input:
        return None
    return load_picture(config.input, cutout=cut.cutout, box=cut.box(), threshold=cut.cutout_threshold)


@runtime_checkable
class Learner(Protocol):
    """A prior that learns on the way: see guidance/vsd.py."""

    def save(self) -> None: ...


def guides(config: Config, picture: Picture | None, priors: Priors) -> tuple[Guide, ...]:
    """The gradients that a step adds up; the same on every rank, but for the LoRA of loss=vsd, which is each rank's own
    and stands in the run's folder."""
    found = told(config, picture, priors)
    if config.loss == "sds":
        return found
    from guidance.vsd import Kept, Variational

    rank = int(os.environ.get("RANK", 0))
    mark = fingerprint(config.but(steps=1), given_bytes(config))  # a run of more steps goes on with it

    def learner(index: int, guide: Guide) -> Variational:
        path = config.run_folder / f"particle{index}_rank{rank}.safetensors"
        if not config.resume:
            path.unlink(missing_ok=True)
        kept = Kept(path, mark, config.checkpoint_every_s)
        seed = config.seed * 1024 + rank
        return Variational(guide.prior, seed, config.lora_rank, config.lora_lr, kept)  # type: ignore[arg-type]

    return tuple(replace(guide, prior=learner(k, guide), csd_below=0.0) for k, guide in enumerate(found))


def keep(found: Iterable[Guide]) -> None:
    """What the guides have learnt goes to the run's folder: this rank's part of the checkpoint."""
    for guide in found:
        if isinstance(guide.prior, Learner):
            guide.prior.save()


def told(config: Config, picture: Picture | None, priors: Priors) -> tuple[Guide, ...]:
    """The priors with what each is told of the asset."""
    found, elevation_rad = [], config.sections.views.elevation_rad
    if picture is not None and priors.zero123 is not None:
        varied = any(part.mirror > 0 or part.hue > 0 for _, part in phases_of(config))
        shown = variants(picture.rgb) if varied else picture.rgb[None]
        seen = priors.zero123.embed(shown, elevation_rad)
        scales = config.guidance_scale, config.lambda_zero123
        found.append(Guide(priors.zero123, seen, *scales, variants=varied))
    if priors.text is not None:
        from guidance.stable_diffusion import Directions

        directions = Directions(config.front_deg, config.overhead_deg)
        said = priors.text.embed(config.prompt, config.negative_prompt, directions, elevation_rad)
        weights = config.text_guidance_scale, config.lambda_sd, config.csd_below, config.csd_rest
        found.append(Guide(priors.text, said, *weights))
    return tuple(found)


def notes(config: Config, picture: Picture | None, priors: Priors) -> list[str]:
    """What the user should know of the input, a line each."""
    lines = list(picture.notes) if picture is not None else []
    sentences = " ".join([config.prompt, config.negative_prompt])
    unseen = priors.text.unseen(sentences) if priors.text is not None else []
    if priors.text is None and config.negative_prompt:
        lines.append("negative_prompt is left out: it goes with a prompt")
    if priors.text is not None and unseen:
        shown = []
        for word in unseen:
            near = difflib.get_close_matches(word, priors.text.words, 3, 0.6)
            shown.append(f"{word} (near it: {', '.join(near)})" if near else word)
        lines.append(f"the text prior was never trained with these words: {', '.join(shown)}")
    if priors.text is not None:
        from guidance.stable_diffusion import Directions

        for option, sentence, endings in (
            ("prompt", config.prompt, Directions().endings),
            ("negative_prompt", config.negative_prompt, ("",)),
        ):
            kept, cut = priors.text.fitted(sentence, endings)
            if cut:
                lines.append(
                    f"{option} is longer than the text prior reads; after '{kept[-40:]}' it leaves out: {cut}"
                )
    return lines
