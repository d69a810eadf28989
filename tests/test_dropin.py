"""The solver around a plain torch model and Adam: docs/solver.md's lines, against the loop anybody writes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gs_propeller.picard import Problem, Settings, solve

pytestmark = pytest.mark.slow  # loads networks or starts processes all along

STEPS = 60
State = tuple[dict[str, Any], dict[str, Any]]  # the model's and the optimizer's


class Field(nn.Module):
    """Colour of a pixel from its place in -1..1."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.waves = 4.0 * torch.randn(2, 16, generator=generator)
        self.layers = nn.Sequential(
            nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 3)
        )
        for p in self.parameters():
            p.data = 0.2 * torch.randn(p.shape, generator=generator)

    def forward(self, places: Tensor) -> Tensor:
        phases = places @ self.waves
        return self.layers(torch.cat([phases.sin(), phases.cos()], 1))


def picture() -> tuple[Tensor, Tensor]:
    """(places [256, 2], colours [256, 3]) of a disc before a gradient."""
    line = torch.linspace(-1.0, 1.0, 16)
    places = torch.cartesian_prod(line, line)
    disc = (places.norm(dim=1, keepdim=True) < 0.6).float()
    return places, disc * torch.tensor([0.9, 0.3, 0.1]) + (1 - disc) * (0.5 + 0.4 * places[:, :1])


PLACES, COLOURS = picture()


def loss_of(model: nn.Module, step: int) -> Tensor:
    """A step's pixels are drawn from the step alone."""
    pixels = torch.randint(len(PLACES), (128,), generator=torch.Generator().manual_seed(step))
    return (model(PLACES[pixels]) - COLOURS[pixels]).square().mean()


def plain(model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def wrapped(model: nn.Module, settings: Settings) -> tuple[int, int]:
    """(passes, evaluations)."""

    def coast(state: State) -> State:
        moments = state[1]["state"]
        if not moments:
            return state
        load(state)
        return update(state, [m["exp_avg"] / (1 - 0.9 ** float(m["step"])) for m in moments.values()])

    # what docs/solver.md shows begins here
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def saved():
        return copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    def load(state):
        model.load_state_dict(state[0])
        optimizer.load_state_dict(copy.deepcopy(state[1]))

    def drift(state, step):  # the dear part: of any step, at any guess of its state, in any order
        load(state)
        return torch.autograd.grad(loss_of(model, step), list(model.parameters()))

    def update(state, gradients):  # the cheap part
        load(state)
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        return saved()

    def distance(new, old):
        return max(float((new[0][k] - old[0][k]).square().mean()) for k in new[0])

    def evaluate(states, steps):  # all at once: here in turn, or on as many devices as there are
        return [drift(state, step) for state, step in zip(states, steps, strict=True)]

    done = solve(Problem(evaluate, update, distance, coast), settings, saved())
    load(done.states[0])
    # and ends here
    return done.passes, done.evaluations


@pytest.fixture(scope="module")
def trained() -> Field:
    model = Field()
    plain(model)
    return model


def whole_loss(model: nn.Module) -> float:
    return (model(PLACES) - COLOURS).square().mean().item()


@pytest.mark.parametrize(("window", "tail"), [(1, "copy"), (2, "momentum"), (5, "copy"), (8, "momentum")])
def test_threshold_0_is_the_plain_loop(trained: Field, window: int, tail: str) -> None:
    model = Field()
    passes, _ = wrapped(model, Settings(STEPS, window, threshold=0.0, ema=1.0, tail=tail))
    assert passes <= STEPS
    for ours, theirs in zip(model.parameters(), trained.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("tail", ["copy", "momentum"])
def test_a_third_of_the_passes_learns_as_well(trained: Field, tail: str) -> None:
    model = Field()
    passes, _ = wrapped(model, Settings(STEPS, 8, threshold=1e-6, ema=1.0, tail=tail))
    assert passes < 0.4 * STEPS  # 21 of 60
    assert whole_loss(model) < 1.05 * whole_loss(trained)  # 1.02; 1.01 with momentum
    assert whole_loss(trained) < 0.02 * whole_loss(Field())
