"""Adam against torch's own, the schedule against 3DGS's formula."""

import math
from dataclasses import fields, replace

import pytest
import torch

from gs_propeller.base.errors import UserError
from gs_propeller.scenes.gaussians.adam import adam_step, learning_rates, momentum, position_lr
from gs_propeller.scenes.gaussians.settings import AdamSettings
from gs_propeller.scenes.gaussians.state import Gaussians
from tests.toy_scene import drift_at, scene


def test_equals_torch_adam() -> None:
    settings = AdamSettings(position_lr_steps=20)
    state = scene(30)
    twin = {name: tensor.clone().requires_grad_() for name, tensor in state.params.items()}
    optimiser = torch.optim.Adam(
        [{"params": [tensor], "name": name} for name, tensor in twin.items()],
        betas=settings.betas,
        eps=settings.eps,
        foreach=False,
    )
    for step in range(30):
        grads = drift_at(state.params, step)[0]
        for group in optimiser.param_groups:
            group["lr"] = learning_rates(step, settings)[group["name"]]
            group["params"][0].grad = getattr(grads, group["name"]).clone()
        optimiser.step()
        state = adam_step(state, grads, settings)
        assert state.step == step + 1
        for name, tensor in state.params.items():
            assert torch.equal(tensor, twin[name]), f"{name}, step {step}"
    for name, moment in state.exp_avg.items():
        assert torch.equal(moment, optimiser.state[twin[name]]["exp_avg"])


def test_leaves_its_arguments_alone() -> None:
    state = scene(5)
    grads = drift_at(state.params, 0)[0]
    before = {name: tensor.clone() for name, tensor in state.tensors().items()} | dict(
        grads.map(torch.clone).items()
    )
    adam_step(state, grads, AdamSettings())
    after = state.tensors() | dict(grads.items())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("step", [0, 1, 250, 499, 500, 10_000])
def test_position_rate_is_log_linear(step: int) -> None:
    """get_expon_lr_func of 3DGS with its defaults: no delay."""
    t = min(max(step / 500, 0.0), 1.0)
    expected = math.exp(math.log(0.001 * 10) * (1 - t) + math.log(0.00002 * 10) * t)
    assert position_lr(step, AdamSettings(position_lr_steps=500)) == pytest.approx(expected, rel=1e-14)


def test_rates_cover_all_fields() -> None:
    rates = learning_rates(0, AdamSettings())
    assert list(rates) == [f.name for f in fields(Gaussians)]
    assert rates["sh_rest"] == rates["sh_dc"] / 20 == 0.0005
    assert rates["means"] == pytest.approx(0.01)


def test_rates_fall_to_their_share_in_the_second_half() -> None:
    settings = AdamSettings(lr_share=0.1, position_lr_steps=200)
    first, half, later, last, past = (learning_rates(step, settings) for step in (0, 100, 150, 200, 900))
    for name in ("log_scales", "quats", "logit_opacities", "sh_dc", "sh_rest"):
        assert half[name] == first[name] and past[name] == last[name]
        assert later[name] == pytest.approx(first[name] * 0.1**0.5, rel=1e-14)
        assert last[name] == pytest.approx(first[name] * 0.1, rel=1e-14)
    assert learning_rates(150, AdamSettings())["sh_dc"] == AdamSettings().feature_lr


def test_momentum_is_the_mean_of_a_constant_gradient() -> None:
    state, settings = scene(6), AdamSettings()
    assert not momentum(state, settings).pack().any()
    grads = drift_at(state.params, 0)[0]
    for _ in range(7):
        state = adam_step(state, grads, settings)
    worst = (momentum(state, settings).pack() - grads.pack()).abs().max() / grads.pack().abs().max()
    assert float(worst) < 2.5e-7  # 8.5e-8


@pytest.mark.parametrize(
    "wrong",
    [
        {"position_lr_init": 0.0},
        {"position_lr_final": -1.0},
        {"eps": 0.0},
        {"feature_lr": -0.1},
        {"opacity_lr": math.nan},
        {"position_lr_steps": 0},
        {"beta_2": 1.0},
        {"lr_share": 0.0},
    ],
)
def test_settings_refuse(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        replace(AdamSettings(), **wrong)  # type: ignore[arg-type]
