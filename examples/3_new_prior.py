"""A new prior: what guides the distillation is anything that has an opinion on pictures.

    PYTHONPATH=. python examples/3_new_prior.py

This one has never seen a picture: from every side it wants a disc, red above and blue below. Three numbers, a gradient
and two answers about it are all that is asked of a prior (gs_propeller/distil/pull.py, ViewPrior); windows, ranks and
exactness come with them. A trained one would look at t, noise and cameras.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gs_propeller.base.camera import orbit
from gs_propeller.config import Config
from gs_propeller.distil.pull import Guide
from gs_propeller.picard import Problem, Settings, solve
from gs_propeller.scenes.gaussians.raster.render import render
from gs_propeller.scenes.gaussians.scene import GaussianScene

WHITE = torch.ones(3)


class RedOverBlue:
    """levels: of noise; size_px: the side of the renders that it wants to see; latent_shape: of the noise."""

    levels, size_px, latent_shape = 100, 24, (1, 1, 1)

    def __init__(self) -> None:
        line = torch.linspace(-1, 1, self.size_px)
        down, across = torch.meshgrid(line, line, indexing="ij")
        colour = torch.where(
            down < 0,
            torch.tensor([0.9, 0.1, 0.1])[:, None, None],
            torch.tensor([0.1, 0.1, 0.9])[:, None, None],
        )
        self.wanted = torch.where(down**2 + across**2 < 0.5, colour, torch.ones(3, 1, 1))

    def sds_grad(
        self, images: Tensor, conditioning: Any, cameras: Tensor, t: Tensor, noise: Tensor,
        guidance_scale: float, weighting: str = "noise", space: str = "latent",
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(gradient for the pictures [V, 3, S, S], half of its square [V] for the log)."""
        gradient = images - self.wanted
        return gradient, gradient.square().sum((1, 2, 3)) / 2

    def share(self, t: Tensor, space: str, follows: str) -> Tensor:
        """[V] of a render's change, what its answer follows: nothing, the wanted picture is always the same."""
        return torch.zeros(len(t))

    def stiffness(self, t: Tensor, weighting: str, space: str, follows: str) -> Tensor:
        """[V] of a render's change, what stays in the gradient: all of it."""
        return torch.ones(len(t))


def main(steps: int = 150, window: int = 8) -> Tensor:
    """A render [3, S, S] of what comes of it, from a side that no step has seen exactly."""
    s = Config(batch_size=2, num_points=300, densify_from=steps, position_lr_steps=steps).sections
    scene = GaussianScene(
        (Guide(RedOverBlue(), None, 1.0),), None, steps, seed=0, views=s.views, levels=s.levels, pull=s.pull,
        knowing=s.known, settings=s.scene, ball=s.ball, adam=s.adam, density=s.density, regularisers=s.regularisers,
    )  # fmt: skip
    problem = Problem(
        lambda states, steps: scene.compute([state.params for state in states], steps),
        lambda state, drift: scene.update(state, drift)[0],
        scene.distance,
        scene.coast,
        scene.mismatch,
    )
    done = solve(problem, Settings(steps, window, threshold=4e-4, ema=1.0), scene.first())
    print(f"{steps} steps in {done.passes} passes")
    with torch.no_grad():
        image = render(done.states[0].params, orbit([1.0], [0.1], 2.0, 0.857), 48, WHITE).image[0]
    above, below = image[:, 18, 24], image[:, 30, 24]
    print("above:", [round(v, 2) for v in above.tolist()], "below:", [round(v, 2) for v in below.tolist()])
    return image


if __name__ == "__main__":
    main()
