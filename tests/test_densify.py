"""Clone, split, prune against loops; lineage against row ids that travel along; what the solver asks for."""

import math
import random
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gs_propeller.base.errors import UserError
from gs_propeller.base.randomness import normals
from gs_propeller.scenes.gaussians.adam import adam_step, momentum
from gs_propeller.scenes.gaussians.density import (
    coast,
    densify_and_prune,
    distance,
    reindex,
    reset_opacity,
    rotations,
    scaled_distance,
    split_half,
    unproj,
    update,
)
from gs_propeller.scenes.gaussians.lineage import (
    COPY,
    FIRST_HALF,
    NOBODY,
    SECOND_HALF,
    born,
    founders,
    is_half,
    match,
    relate,
)
from gs_propeller.scenes.gaussians.settings import DensifySettings
from gs_propeller.scenes.gaussians.state import ANCESTORS, Drift, Gaussians, State, Stats, StepStats
from tests.toy_scene import ADAM, DENSITY, SEED, STEPS, drift_at, scene

Row = dict[str, Tensor]
SETTINGS = DensifySettings(densify_grad_threshold=1.0, split_scale=0.3, max_scale=0.5, min_gaussians=2)


def at_step(state: State, step: int) -> State:
    """The state as it would be after so many updates, with moments that show where they go."""
    marked = state.params.map(lambda values: values + 1.0)
    return replace(state, step=step, exp_avg=marked, exp_avg_sq=marked.map(torch.square))


def with_stats(state: State, seed: int = 0, share: float = 0.4) -> State:
    """Statistics at random: about that share of the rows over SETTINGS' gradient threshold."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randint(0, 5, (len(state),), generator=generator).float()
    large = (torch.rand(len(state), generator=generator) < share).float()
    radii = 1.2 * torch.rand(len(state), generator=generator)
    return replace(state, stats=Stats((0.5 + large) * seen, seen, radii))


def ran(steps: int, rows: int = 24, seed: int = 0) -> State:
    state = scene(rows, seed)
    for step in range(steps):
        grads, stats, losses = drift_at(state.params, step)
        state = update(state, Drift(grads, stats, state.lineage, losses), ADAM, DENSITY, SEED)
    return state


# ---- slow twins


def half_twin(parent: Row, own_id: Tensor, seed: int) -> Row:
    """One half, in float64, from the quaternion's own product q v q*."""
    w, *axis = (parent["quats"].double() / parent["quats"].double().norm()).tolist()
    drawn = parent["log_scales"].double().exp() * normals(seed, own_id[None])[0]
    u, v = torch.tensor(axis, dtype=torch.float64), drawn
    turned = v + 2 * torch.linalg.cross(u, torch.linalg.cross(u, v) + w * v)
    child = dict(parent)
    child["means"] = parent["means"].double() + turned
    child["log_scales"] = (parent["log_scales"].double().exp() / 1.6).log()
    return child


def densify_twin(state: State, settings: DensifySettings, seed: int) -> list[tuple[Row, Row, Tensor]]:
    """(parameters, first moments, lineage) of each row that comes out, in order."""
    rows = [{name: values[i] for name, values in state.params.items()} for i in range(len(state))]
    moments = [{name: values[i] for name, values in state.exp_avg.items()} for i in range(len(state))]
    blank = {name: torch.zeros_like(values) for name, values in moments[0].items()}
    grads = [
        float(g) / max(float(s), 1.0) for g, s in zip(state.stats.grad2d_sum, state.stats.seen, strict=True)
    ]
    large = [i for i in range(len(rows)) if grads[i] >= settings.densify_grad_threshold]
    chosen = sorted(large, key=lambda i: (-grads[i], i))[: max(0, settings.max_gaussians - len(rows))]
    kept, copies = [], []
    halves: dict[int, list[tuple[Row, Row, Tensor, float]]] = {FIRST_HALF: [], SECOND_HALF: []}
    for i, row in enumerate(rows):
        halved = i in chosen and float(row["log_scales"].exp().max()) > settings.split_scale
        if not halved:
            kept.append((row, moments[i], state.lineage[i], float(state.stats.max_radii[i])))
        if i in chosen and not halved:
            copies.append((row, blank, born(state.lineage[i : i + 1], state.step, COPY)[0], 0.0))
        if halved:
            for child in (FIRST_HALF, SECOND_HALF):
                lineage = born(state.lineage[i : i + 1], state.step, child)[0]
                halves[child].append((half_twin(row, lineage[0, 0], seed), blank, lineage, 0.0))
    grown = kept + copies + halves[FIRST_HALF] + halves[SECOND_HALF]
    survivors = {
        j
        for j, (row, _, _, radius) in enumerate(grown)
        if float(row["logit_opacities"].double().sigmoid()) >= settings.min_opacity
        and float(row["log_scales"].double().exp().max()) <= settings.max_scale
        and radius <= settings.max_radius
    }
    if len(survivors) < settings.min_gaussians:
        by_opacity = sorted(range(len(grown)), key=lambda j: (-float(grown[j][0]["logit_opacities"]), j))
        survivors |= set(by_opacity[: settings.min_gaussians])
    return [grown[j][:3] for j in sorted(survivors)]


def relate_twin(target: Tensor, source: Tensor) -> tuple[list[int], list[int]]:
    """By dictionaries: own id, nearest ancestor that lives, a descendant, a cousin."""
    living = {row[0][0]: i for i, row in reversed(list(enumerate(source.tolist())))}
    index, births = [], []
    for row in target.tolist():
        chain = [own for own, _ in row if own != NOBODY]
        found, depth = NOBODY, 0
        for back, own in enumerate(chain):
            if own in living:
                found, depth = living[own], back
                break
        else:
            for own in chain:
                for back in range(1, source.shape[1]):
                    cousins = [i for i, other in enumerate(source.tolist()) if other[back][0] == own]
                    if cousins and found == NOBODY:
                        found = cousins[0]
        index.append(found)
        births.append(depth)
    return index, births


# ---- density control


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("most", [100_000, 45])
def test_densify_matches_loops(seed: int, most: int) -> None:
    settings = replace(SETTINGS, max_gaussians=most, min_opacity=0.05)
    state = with_stats(at_step(scene(40, seed), 100), seed)
    out, twin = densify_and_prune(state, settings, SEED), densify_twin(state, settings, SEED)
    assert torch.equal(out.lineage, torch.stack([lineage for *_, lineage in twin]))
    births = set(out.lineage[:, 0, 1].tolist())
    assert births == {NOBODY, 400, 401, 402} or (most == 45 and births <= {NOBODY, 400, 401, 402})
    for name, values in out.params.items():
        expected = torch.stack([row[name].double() for row, _, _ in twin])
        assert float((values.double() - expected).abs().max()) < 3e-7, name  # 9.5e-8
        moments = torch.stack([moment[name] for _, moment, _ in twin])
        assert torch.equal(getattr(out.exp_avg, name), moments)
        assert torch.equal(getattr(out.exp_avg_sq, name), moments.square())
    assert len(out) <= most and out.step == 100
    assert not any(
        bool(values.any()) for values in (out.stats.grad2d_sum, out.stats.seen, out.stats.max_radii)
    )


def test_row_ids_carried_as_a_parameter_follow_the_lineage() -> None:
    """sh_dc is copied as it is, so the founder's row written there must be what the lineage says."""
    state = scene(30)
    state = replace(
        state, params=replace(state.params, sh_dc=torch.arange(30.0)[:, None, None].expand(-1, 1, 3))
    )
    founder_of = dict(zip(state.ids.tolist(), range(30), strict=True))
    settings = replace(SETTINGS, min_opacity=0.06, max_radius=1.1)
    for generation, step in enumerate((100, 200, 300)):
        before = set(state.ids.tolist())
        state = densify_and_prune(with_stats(replace(state, step=step), generation), settings, SEED)
        for own, birth in state.lineage[:, 0].tolist():
            if own not in founder_of:
                assert birth // 4 == step
        for row in state.lineage.tolist():
            own, parent = row[0][0], row[1][0]
            assert own in before or parent in before
            founder_of.setdefault(own, founder_of.get(parent, NOBODY))
        assert state.params.sh_dc[:, 0, 0].tolist() == [founder_of[own] for own in state.ids.tolist()]
        assert len(set(state.ids.tolist())) == len(state)
        assert set(state.ids.tolist()) != before
    assert len(before - set(state.ids.tolist())) > 0  # something was pruned or split away


def test_largest_gradients_first_then_rows() -> None:
    state = scene(16)
    ones = torch.ones(16)
    grads = torch.tensor([2.0, 5.0, 2.0, 2.0, 0.1, 5.0, *[0.0] * 10])
    state = replace(state, step=8, stats=Stats(grads, ones, 0 * ones))
    roomy = replace(SETTINGS, split_scale=50.0, max_scale=60.0, min_opacity=1e-4, max_gaussians=19)
    out = densify_and_prune(state, roomy, SEED)
    assert out.lineage[16:, 1, 0].tolist() == [state.ids[i] for i in (0, 1, 5)]
    full = densify_and_prune(state, replace(roomy, max_gaussians=16), SEED)
    assert torch.equal(full.ids, state.ids)


def test_never_empty() -> None:
    state = with_stats(scene(30))
    out = densify_and_prune(
        state, replace(SETTINGS, min_opacity=0.9, densify_grad_threshold=1e9, min_gaussians=5), 0
    )
    most_opaque = state.params.logit_opacities.argsort(descending=True)[:5].sort().values
    assert torch.equal(out.ids, state.ids[most_opaque])


def test_a_gaussian_splits_alike_beside_any_others() -> None:
    state = scene(20)
    ids = born(state.lineage, 7, FIRST_HALF)[:, 0, 0]
    all_at_once = split_half(state.params, ids, SEED)
    alone = [
        split_half(state.params.map(lambda v, i=i: v[i : i + 1]), ids[i : i + 1], SEED) for i in range(20)
    ]
    worst = (torch.cat([half.pack() for half in alone]) - all_at_once.pack()).abs().max()
    assert float(worst) < 1e-6  # 0 here; a vector unit may round its tail otherwise
    other = split_half(state.params, ids, SEED + 1)
    assert float((other.means - all_at_once.means).abs().max()) > 0.01


def test_rotations_are_rotations() -> None:
    quats = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turns = rotations(quats)
    eye = torch.eye(3, dtype=torch.float64)
    assert float((turns @ turns.transpose(1, 2) - eye).abs().max()) < 3e-15  # 1.1e-15
    quarter = rotations(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))[0]  # 90 degrees about z takes x to y
    torch.testing.assert_close(quarter @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))


def test_reset_opacity() -> None:
    state = at_step(scene(10), 5)
    out = reset_opacity(state, 0.1)
    before, after = state.params.logit_opacities.sigmoid(), out.params.logit_opacities.sigmoid()
    torch.testing.assert_close(after, before.clamp(max=0.1))
    assert bool((before > 0.1).any()) and bool((before < 0.1).any())
    assert not out.exp_avg.logit_opacities.any() and not out.exp_avg_sq.logit_opacities.any()
    assert torch.equal(out.exp_avg.means, state.exp_avg.means) and torch.equal(
        out.params.means, state.params.means
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"densify_every": 0},
        {"densify_from": -1},
        {"min_opacity": 1.0},
        {"densify_grad_threshold": 0.0},
        {"max_scale": math.nan},
        {"max_gaussians": 3},
    ],
)
def test_settings_refuse(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        replace(DensifySettings(), **wrong)  # type: ignore[arg-type]


# ---- the update


def test_update_follows_the_schedule() -> None:
    """Adam and statistics every step; clones, splits, prunes and resets at their steps and at no other."""
    state, changed, reset, births = scene(24), [], [], set()
    for step in range(STEPS):
        grads, stats, losses = drift_at(state.params, step)
        after = update(state, Drift(grads, stats, state.lineage, losses), ADAM, DENSITY, SEED)
        plain = adam_step(state, grads, ADAM)
        assert after.step == step + 1
        if not torch.equal(after.ids, state.ids):
            changed.append(after.step)
            births |= set((after.lineage[:, 0, 1] % 4).tolist())
            assert not after.stats.grad2d_sum.any()
        elif not torch.equal(after.params.logit_opacities, plain.params.logit_opacities):
            reset.append(after.step)
        else:
            assert torch.equal(after.params.pack(), plain.params.pack())
            assert torch.equal(after.stats.seen, state.stats.seen + stats.seen)
        state = after
    assert changed == list(range(5, 52, 5))  # every 5 from 4 to 52
    assert reset == [23, 46]
    assert births == {3, COPY, FIRST_HALF, SECOND_HALF}  # 3: -1 % 4, a founder


def test_coast_is_adam_along_its_momentum() -> None:
    state = ran(7)
    ahead = coast(state, ADAM, DENSITY, SEED)
    expected = adam_step(state, momentum(state, ADAM), ADAM)
    assert torch.equal(ahead.params.pack(), expected.params.pack()) and ahead.step == 8
    assert torch.equal(ahead.stats.grad2d_sum, state.stats.grad2d_sum)
    assert torch.equal(coast(scene(9), ADAM, DENSITY, SEED).params.pack(), scene(9).params.pack())
    state = ran(9)
    assert len(coast(state, ADAM, DENSITY, SEED)) != len(state)  # the schedule holds for a guess too


# ---- lineage


def test_births() -> None:
    parents = founders(3, 4)
    children = born(born(parents, 12, SECOND_HALF), 20, COPY)
    assert children[:, 0, 1].tolist() == [80] * 3 and children[:, 1, 1].tolist() == [50] * 3
    assert torch.equal(children[:, 2], parents[:, 0])
    assert is_half(torch.tensor([NOBODY, 80, 49, 50])).tolist() == [False, False, True, True]
    family = torch.cat([born(parents, step, child) for step in (1, 2) for child in (0, 1, 2)] + [parents])
    assert len(set(family[:, 0, 0].tolist())) == 21 and int(family[:, 0, 0].min()) >= 0
    deep = parents
    for step in range(6):
        deep = born(deep, step, COPY)
    assert deep.shape == (3, 4, 2) and not set(deep[:, :, 0].flatten().tolist()) & set(
        parents[:, 0, 0].tolist()
    )


def grown_apart(seed: int, generations: int) -> tuple[State, State]:
    """Two iterates that split, cloned and pruned different rows of one ancestor."""
    first = second = with_stats(scene(25), seed)
    settings = replace(SETTINGS, split_scale=0.2, min_opacity=0.05)
    for generation in range(generations):
        step = 10 * (generation + 1)
        first = densify_and_prune(
            with_stats(replace(first, step=step), seed + 17 * generation), settings, SEED
        )
        second = densify_and_prune(
            with_stats(replace(second, step=step), seed + 17 * generation + 5), settings, SEED
        )
    return first, second


@pytest.mark.parametrize("generations", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_match_row_by_row(seed: int, generations: int) -> None:
    first, second = grown_apart(seed, generations)
    random.seed(seed)
    order = random.sample(range(len(second)), len(second))  # rows need not be in the order of their birth
    source = second.lineage[order]
    index, births = relate(first.lineage, source)
    assert (index.tolist(), births.tolist()) == relate_twin(first.lineage, source)
    assert torch.equal(match(first.lineage, source), index)
    if generations == 0:
        assert torch.equal(source[index], first.lineage)
    if generations == 2:  # every rule was at work
        by_id = int((second.lineage[order][index, 0, 0] == first.ids)[index >= 0].sum())
        assert 0 < by_id < len(first) and int(births.max()) > 0 and int((index < 0).sum()) > 0


def test_match_to_nothing() -> None:
    assert match(founders(3, 4), founders(0, 4)).tolist() == [NOBODY] * 3
    assert match(founders(5, 4)[3:], founders(3, 4)).tolist() == [NOBODY] * 2


# ---- what the solver asks for


@pytest.mark.parametrize("generations", [1, 2, 3])
def test_unproj_replays_births(generations: int) -> None:
    like, old = grown_apart(3, generations)
    old = replace(old, params=old.params.map(lambda values: values + 0.01))
    lifted = unproj(old, like, SEED)
    index, births = relate_twin(like.lineage, old.lineage)
    for i, (row, depth) in enumerate(zip(index, births, strict=True)):
        source = like.params if row == NOBODY else old.params
        expected = {name: values[i if row == NOBODY else row] for name, values in source.items()}
        for generation in range(depth - 1, -1, -1):
            own, birth = like.lineage[i, generation]
            if int(birth) % 4 != COPY:
                expected = half_twin({n: v.float() for n, v in expected.items()}, own, SEED)
        for name, values in lifted.items():
            assert float((values[i].double() - expected[name].double()).abs().max()) < 3e-7, name  # 9.5e-8
    assert max(births) > 0


def test_unproj_is_the_same_densification() -> None:
    """Where only the newer iterate has split, lifting the older one is splitting it too."""
    old = replace(scene(25), step=40)
    grown = densify_and_prune(with_stats(old, 2), replace(SETTINGS, min_opacity=1e-4, max_scale=99.0), SEED)
    assert len(grown) > len(old)
    assert torch.equal(unproj(old, grown, SEED).pack(), grown.params.pack())
    assert distance(grown, old, SEED) == sys.float_info.min  # alike, but not the same rows


def test_reindex_takes_the_relatives_drift() -> None:
    at, state = grown_apart(1, 2)
    grads, stats, losses = drift_at(at.params, 3)
    drift = Drift(grads, stats, at.lineage, losses)
    out = reindex(drift, state)
    index, _ = relate_twin(state.lineage, at.lineage)
    assert NOBODY in index
    for i, row in enumerate(index):
        for name, values in out.grads.items():
            expected = torch.zeros_like(values[i]) if row == NOBODY else getattr(grads, name)[row]
            assert torch.equal(values[i], expected)
        assert float(out.stats.grad2d[i]) == (0.0 if row == NOBODY else float(stats.grad2d[row]))
        assert float(out.stats.seen[i]) == (0.0 if row == NOBODY else 4.0)
    assert torch.equal(out.lineage, state.lineage) and out.losses is losses
    assert reindex(drift, at) is drift


def test_distance_is_the_mean_square() -> None:
    new = scene(12)
    old = replace(new, params=new.params.map(lambda values: values + 0.25), exp_avg=new.params)
    expected, count = 0.0, 0
    for a, b in zip(new.params.pack().double().flatten(), old.params.pack().double().flatten(), strict=True):
        expected, count = expected + float(a - b) ** 2, count + 1
    assert distance(new, old, SEED) == pytest.approx(expected / count, rel=1e-14)
    assert distance(new, replace(new, exp_avg=new.params, step=9), SEED) == 0.0  # parameters only


def test_distance_is_zero_for_nothing_but_the_same() -> None:
    new = scene(12)
    nudged = new.params.means.clone()
    nudged[3, 1] = torch.nextafter(nudged[3, 1], torch.tensor(9.0))
    tiny = new.params.sh_dc.clone()
    tiny[0] = 0.0
    assert 0.0 < distance(new, replace(new, params=replace(new.params, means=nudged)), SEED) < 1e-16
    almost = replace(new, params=replace(new.params, sh_dc=tiny))
    tiny = tiny.clone()
    tiny[0] = 1e-45  # the least float: its square is 2e-90
    assert distance(almost, replace(new, params=replace(new.params, sh_dc=tiny)), SEED) > 0.0
    swapped = torch.tensor([1, 0, *range(2, 12)])
    turned = replace(new, params=new.params.map(lambda values: values[swapped]), lineage=new.lineage[swapped])
    assert distance(new, turned, SEED) == sys.float_info.min  # the order of rows is part of a drift
    broken = replace(new, params=replace(new.params, means=new.params.means * math.nan))
    assert math.isnan(distance(broken, new, SEED)) and math.isnan(distance(broken, turned, SEED))


def test_scaled_distance_is_the_worst_field() -> None:
    new = scene(12)
    generator = torch.Generator().manual_seed(5)
    old = replace(
        new, params=new.params.map(lambda x: x + 0.02 * torch.randn(x.shape, generator=generator)), step=3
    )
    expected = 0.0
    for name, values in new.params.items():
        total, others = 0.0, getattr(old.params, name).flatten().tolist()
        for a, b in zip(values.flatten().tolist(), others, strict=True):
            total += ((a - b) / (0.02 + 0.1 * abs(a))) ** 2
        expected = max(expected, math.sqrt(total / values.numel()))
    assert scaled_distance(new, old, SEED, 0.02, 0.1) == pytest.approx(expected, rel=1e-12)
    assert scaled_distance(new, replace(new, exp_avg=new.params), SEED) == 0.0
    swapped = torch.tensor([1, 0, *range(2, 12)])
    turned = replace(new, params=new.params.map(lambda values: values[swapped]), lineage=new.lineage[swapped])
    assert scaled_distance(new, turned, SEED) > 0.0
    broken = replace(new, params=replace(new.params, quats=new.params.quats * math.nan))
    assert math.isnan(scaled_distance(broken, new, SEED))


def test_drift_at_other_rows_moves_the_update() -> None:
    """A drift taken before a densification still serves after it: the twin is the loop by hand."""
    before, after = ran(4), ran(5)
    grads, stats, losses = drift_at(before.params, 5)
    drift = Drift(grads, stats, before.lineage, losses)
    rows = match(after.lineage, before.lineage)
    assert int(rows.min()) >= 0
    by_hand = adam_step(after, grads.map(lambda values: values[rows]), ADAM)
    out = update(after, drift, ADAM, DENSITY, SEED)
    assert torch.equal(out.params.pack(), by_hand.params.pack())
    assert isinstance(out.params, Gaussians) and isinstance(stats, StepStats)


@pytest.mark.parametrize("generations", range(1, 7))
def test_iterates_further_apart_than_lineages_reach_are_not_alike(generations: int) -> None:
    """All split at every step: past the generations that are remembered nothing is known, and nothing is near."""
    every = DensifySettings(
        densify_from=1, densify_every=1, densify_until=9, densify_grad_threshold=1e-9, split_scale=1e-9, max_scale=1e9,
        max_radius=1e9, min_opacity=1e-4,
    )  # fmt: skip
    old = new = scene(6)
    for step in range(1, generations + 1):
        stats = replace(new.stats, grad2d_sum=torch.ones(len(new)), seen=torch.ones(len(new)))
        new = densify_and_prune(replace(new, step=step, stats=stats), every, SEED)
    moved = replace(new, params=replace(new.params, means=new.params.means + 1.0))
    older = replace(old, step=generations)
    apart = distance(moved, older, SEED), scaled_distance(moved, older, SEED)
    assert all((d == math.inf) == (generations >= ANCESTORS) for d in apart)
    assert min(apart) > 0.1
