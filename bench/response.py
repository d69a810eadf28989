"""How much of a render's change the prior's clean picture follows: `python -m bench.response [--text] [--out FOLDER]`.

Short runs of validation objects (or of sentences with --text) leave pairs of renders, a few steps apart, of the same
views. At each of LEVELS noise levels, evenly from none to all, both are shown to the prior under one noise, and a is
one minus the share of the change that stays in the residual: 1 - <dP, d> / <d, d>, P the gradient under the weighting
that is 1 at every level, averaged over the pairs. Written to response.json in the prior's folder, where
`follows=measured` finds it; printed as one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.kept import on_one_thread
from bench.solving import Setup, configured, prepared
from bench.truth import Case
from gs_propeller.app.config import Config, load, updated
from gs_propeller.base.randomness import keyed_generator
from gs_propeller.distil.draw import Draw
from gs_propeller.distil.pull import Guide
from gs_propeller.solver.picard import advance, init
from guidance.diffusion import RESPONSE
from guidance.folder import find_prior, find_text_prior
from guidance.pocket.data import VALIDATION_SEED, held_out

LEVELS = 11
PLACES, APART = (10, 40, 80), 8  # steps of a run where renders are taken, and how far apart
SENTENCES = (  # judged nowhere
    "a purple cone on a grey cube", "a white table with blue legs", "a spotted green ball", "a black bottle",
    "a blue house with a white roof", "a brown horse",
)  # fmt: skip


def pairs(config: Config) -> Iterator[tuple[Setup, Draw, Tensor, Tensor]]:
    """(the run, a step's draw, the renders of its views, the same APART steps later)."""
    setup = prepared(config.but(window=1))
    window, states = init(setup.first(), setup.problem, setup.settings), {}
    for step in range(max(PLACES) + APART + 1):
        states[step] = window.states[0]
        window, report = advance(window, setup.problem, setup.settings)
        setup.logged.rows(report)
    for place in PLACES:
        seen = [setup.scene.seen(states[k], place).novel for k in (place, place + APART)]
        earlier, later = (view.image.detach().clone() for view in seen if view is not None)
        yield setup, setup.scene.drawn(place), earlier, later


def measured(configs: list[Config]) -> list[float]:
    """a at LEVELS levels."""
    total = torch.zeros(LEVELS, 2, dtype=torch.float64)
    for config in configs:
        for setup, drawn, earlier, later in pairs(config):
            guide, change = setup.scene.guides[0], (later - earlier).double()
            for k in range(LEVELS):
                t = torch.full((len(earlier),), round(k / (LEVELS - 1) * (guide.prior.levels - 1)))
                noise = torch.randn(drawn.noise[0].shape, generator=keyed_generator(k, 0, "response"))
                before, after = (answered(guide, x, drawn, t, noise).double() for x in (earlier, later))
                total[k, 0] += ((after - before) * change).sum()
                total[k, 1] += change.square().sum()
    return [round(float(x), 4) for x in (1 - total[:, 0] / total[:, 1]).clamp(0, 1)]


def answered(guide: Guide, images: Tensor, drawn: Draw, t: Tensor, noise: Tensor) -> Tensor:
    """[V, 3, S, S]: the pull on a step's renders, each asked for in its variant of the picture."""
    told, codes, variant = guide.conditioning, drawn.codes, drawn.variant
    if guide.variants:
        told, images, codes = variant.asked(told, images, codes)
    pull = guide.prior.sds_grad(images, told, codes, t, noise, guide.guidance_scale, "clean", "pixel")[0]
    return variant.undone(pull) if guide.variants else pull


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", action="store_true", help="the text prior")
    parser.add_argument("--objects", type=int, default=3, help="or sentences, of which there are 6")
    parser.add_argument(
        "--out", type=Path, help="folder to write to; the shipped prior's where none is given"
    )
    given = parser.parse_args()
    on_one_thread()
    if given.text:
        base, _ = load(["--config", "configs/text.yaml"])
        configs = [
            updated(base, {"prompt": s, "device": "cpu", "text_prior": "pocket"})
            for s in SENTENCES[: given.objects]
        ]
    else:
        objects = held_out(given.objects, VALIDATION_SEED)
        configs = [
            configured(Case(f"{thing.family}-{thing.seed}", thing, pose), {}) for thing, pose in objects
        ]
    found = measured(configs)
    folder = given.out or Path(find_text_prior("pocket") if given.text else find_prior("pocket"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESPONSE).write_text(json.dumps({"share": found}) + "\n")
    print(json.dumps({"share": found}))


if __name__ == "__main__":
    main()
