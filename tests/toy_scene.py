"""A toy drift on Gaussians: cheap, nonlinear, every row felt by every other; some split, some die."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gs_propeller.base.randomness import keyed_generator
from gs_propeller.scenes.gaussians.settings import AdamSettings, DensifySettings
from gs_propeller.scenes.gaussians.state import Evaluation, Gaussians, State, StepStats, start

ADAM = AdamSettings(position_lr_init=0.002, position_lr_steps=40, opacity_lr=0.2)
DENSITY = DensifySettings(
    densify_from=4,
    densify_until=52,
    densify_every=5,
    opacity_reset_every=23,
    densify_grad_threshold=1.5,
    split_scale=0.25,
    max_scale=0.9,
    max_radius=0.95,
)
SEED, STEPS = 3, 62


def scene(rows: int = 24, seed: int = 0, sh_degree: int = 1) -> State:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator)

    rest = (sh_degree + 1) ** 2 - 1
    return start(
        Gaussians(
            0.5 * draw(3), 0.4 * draw(3) - 1.5, draw(4), draw() - 2.0, 0.3 * draw(1, 3), 0.1 * draw(rest, 3)
        )
    )


def drift_at(params: Gaussians, step: int) -> Evaluation:
    """grads, statistics and losses, a function of parameters and step; the step draws its own phase."""
    phase = torch.rand(3, generator=keyed_generator(SEED, step, "toy"))
    centre = params.means.mean(0)
    waves = torch.sin(4.0 * params.means + 0.3 * phase)
    grads = Gaussians(
        waves + 0.2 * (params.means - centre),
        params.log_scales + 1.3 + 0.2 * waves,
        0.1 * params.quats.roll(1, 1),
        params.logit_opacities * 0.1 + waves.sum(1),
        params.sh_dc - 0.2 * phase,
        params.sh_rest * 0.5,
    )
    stats = StepStats(
        4.0 * waves.abs().sum(1), torch.full_like(waves[:, 0], 4.0), params.log_scales.exp().amax(1) / 2.0
    )
    return Evaluation(grads, stats, torch.stack([waves.square().mean(), params.sh_dc.square().mean()]))


def compute(params: Sequence[Gaussians], steps: Sequence[int]) -> list[Evaluation]:
    return [drift_at(p, step) for p, step in zip(params, steps, strict=True)]
