"""Records and their checks, the first state, and the random numbers behind it."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from gs_propeller.base.randomness import keyed_generator, normals, splitmix64
from gs_propeller.scenes.gaussians.lineage import NOBODY
from gs_propeller.scenes.gaussians.state import (
    ANCESTORS,
    Drift,
    Gaussians,
    State,
    Stats,
    StepStats,
    init_ball,
    neighbour_distance,
)
from tests.toy_scene import scene

WORD = (1 << 64) - 1


def splitmix64_twin(word: int) -> int:
    """splitmix64 as published, on Python's own integers."""
    z = (word + 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def test_pack_and_tensors_round_trip() -> None:
    state = replace(scene(7), step=5)
    assert torch.equal(Gaussians.unpack(state.params.pack()).pack(), state.params.pack())
    again = State.from_tensors(state.tensors())
    assert again.tensors().keys() == state.tensors().keys()
    assert all(torch.equal(tensor, state.tensors()[name]) for name, tensor in again.tensors().items())
    assert again.step == 5 and again.params.sh_degree == 1 and len(again) == 7
    assert torch.equal(state.to("cpu").ids, state.ids)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: replace(s, exp_avg=scene(6).params), "exp_avg has 6 rows, the parameters 7"),
        (lambda s: replace(s, stats=Stats.zeros(scene(8).params)), "stats has 8 rows"),
        (lambda s: replace(s, lineage=s.lineage[:, :2]), "lineage must be"),
        (lambda s: replace(s, lineage=s.lineage.int()), "int64"),
        (lambda s: replace(s, step=-1), "step must be at least 0"),
        (
            lambda s: Drift(s.params, StepStats.zeros(s.params), s.lineage[:3], torch.zeros(0)),
            "lineage has 3",
        ),
        (lambda s: StepStats(torch.zeros(2), torch.zeros(2), torch.zeros(3)), "statistics must all be"),
        (lambda s: Stats(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 1)), "statistics must all be"),
        (lambda s: replace(s.params, quats=s.params.means), "quats must be"),
        (lambda s: replace(s.params, sh_rest=torch.zeros(7, 2, 3)), "sh_rest must be"),
    ],
)
def test_records_refuse_what_does_not_fit(make: Callable[[State], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(scene(7))


def test_stats_add_up() -> None:
    params = scene(3).params
    first = StepStats(
        torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.1, 0.5, 0.2])
    )
    second = StepStats(
        torch.tensor([4.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.3, 0.4, 0.2])
    )
    total = Stats.zeros(params).add(first).add(second)
    assert total.grad2d_sum.tolist() == [5.0, 2.0, 4.0]
    assert total.seen.tolist() == [2.0, 1.0, 3.0]
    assert torch.equal(total.max_radii, torch.tensor([0.3, 0.5, 0.2]))
    assert len(total) == len(first) == 3


def test_ball() -> None:
    state = init_ball(2000, 0.5, 2, seed=7)
    params, radii = state.params, state.params.means.norm(dim=1)
    assert state.step == 0 and params.sh_degree == 2 and len(state) == 2000
    assert float(radii.max()) <= 0.5 * (1 + 1e-6)
    fraction = (radii / 0.5) ** 3  # uniform in a ball: r^3 is uniform; standard error 0.0065
    assert abs(float(fraction.mean()) - 0.5) < 0.02
    assert float(params.means.mean(0).abs().max()) < 0.02  # standard error 0.005
    torch.testing.assert_close(params.logit_opacities.sigmoid(), torch.full((2000,), 0.1))
    assert torch.equal(params.quats, torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(2000, 4))
    assert float(params.sh_dc.min()) >= 0.0 and float(params.sh_dc.max()) <= 1 / 255
    assert not params.sh_rest.any() and not state.exp_avg.pack().any() and not state.exp_avg_sq.pack().any()
    assert torch.equal(params.log_scales, params.log_scales[:, :1].expand(-1, 3))
    assert torch.equal(init_ball(2000, 0.5, 2, seed=7).params.pack(), params.pack())
    assert not torch.equal(init_ball(2000, 0.5, 2, seed=8).params.means, params.means)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 0.5, 0), "num_points"),
        ((9, 0.0, 0), "radius"),
        ((9, math.nan, 0), "radius"),
        ((9, 0.5, 4), "sh_degree"),
    ],
)
def test_ball_refuses(arguments: tuple[int, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        init_ball(*arguments, seed=0)


def test_neighbour_distance_matches_loops() -> None:
    points = scene(40).params.means
    found = neighbour_distance(points)
    for i, point in enumerate(points.double()):
        others = sorted(
            float((point - other).square().sum()) for j, other in enumerate(points.double()) if j != i
        )
        expected = math.sqrt(max(sum(others[:3]) / 3, 1e-7))
        assert abs(float(found[i]) / expected - 1) < 2e-7  # 6.7e-8
    assert torch.equal(neighbour_distance(torch.zeros(5, 3)), torch.full((5,), 1e-7).sqrt())


def test_founders_bear_hashed_ids() -> None:
    state = scene(50)
    assert state.ids.tolist() == [splitmix64_twin(row) & (WORD >> 1) for row in range(50)]
    assert bool((state.lineage[:, 0, 1] == NOBODY).all())
    assert bool((state.lineage[:, 1:] == NOBODY).all())
    assert state.lineage.shape == (50, ANCESTORS, 2)


def test_splitmix64_matches_integers() -> None:
    words = [0, 1, 2, 1234567, (1 << 63) - 1, -1, -(1 << 63), -987654321]
    mixed = splitmix64(torch.tensor(words)).tolist()
    assert [word & WORD for word in mixed] == [splitmix64_twin(word & WORD) for word in words]


def test_normals_are_normal_and_belong_to_ids() -> None:
    ids = splitmix64(torch.arange(20000))
    drawn = normals(5, ids)
    assert drawn.shape == (20000, 3) and drawn.dtype == torch.float64
    assert float(drawn.mean(0).abs().max()) < 0.02  # standard error 0.007
    assert float((drawn.var(0) - 1).abs().max()) < 0.03  # standard error 0.010
    assert float((torch.corrcoef(drawn.T) - torch.eye(3)).abs().max()) < 0.03  # standard error 0.007
    kurtosis = drawn.pow(4).mean(0)
    assert float((kurtosis - 3).abs().max()) < 0.2  # standard error 0.07
    order = torch.randperm(20000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normals(5, ids[order]), drawn[order], rtol=0, atol=1e-15)  # 0
    assert float((normals(6, ids) - drawn).abs().min()) > 0.0


def test_normals_match_scalar_box_muller() -> None:
    ids = splitmix64(torch.arange(10))
    drawn = normals(2, ids)
    for i, own in enumerate(ids.tolist()):
        key = splitmix64_twin((own & WORD) ^ splitmix64_twin(2))
        bits = [splitmix64_twin((key + j * 0x9E3779B97F4A7C15) & WORD) >> 11 for j in range(4)]
        u = [(b + 0.5) * 2.0**-53 for b in bits]
        radii = [math.sqrt(-2 * math.log(u[0])), math.sqrt(-2 * math.log(u[2]))]
        cosines = [math.cos(2 * math.pi * u[1]), math.cos(2 * math.pi * u[3])]
        expected = [radii[0] * cosines[0], radii[1] * cosines[1], radii[0] * math.sin(2 * math.pi * u[1])]
        assert drawn[i].tolist() == pytest.approx(
            expected, rel=0, abs=1e-15
        )  # 2.8e-17 here; other libms differ


def test_generators_belong_to_their_keys() -> None:
    def draw(*key: object) -> float:
        return float(torch.rand((), generator=keyed_generator(*key), dtype=torch.float64))  # type: ignore[arg-type]

    torch.manual_seed(0)
    first = draw(0, 1, "noise")
    torch.manual_seed(1)  # the global stream has no say
    assert draw(0, 1, "noise") == first
    others = {draw(1, 0, "noise"), draw(0, 1, "views"), draw(0, 11, "noise"), draw(0, 2, "noise"), first}
    assert len(others) == 5
