"""Fields and tetrahedra as the solver and the program see them: losses, meshes, whole runs whose window at threshold 0
is the serial loop, and the commands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import main_propeller
from gs_propeller.app.asset import Logged, problem
from gs_propeller.app.config import Config, load
from gs_propeller.app.fingerprint import fingerprint
from gs_propeller.base.errors import UserError
from gs_propeller.distil.phases import Distilled
from gs_propeller.mesh.field_surface import extract_field
from gs_propeller.mesh.foreign import load_mesh
from gs_propeller.scenes.fields.scene import CHEAP, LOSSES
from gs_propeller.scenes.fields.state import FieldState, Grids, first_state
from gs_propeller.scenes.tetrahedra import scene as tets
from gs_propeller.solver import checkpoint
from gs_propeller.solver.picard import Settings, Window, resume, solve
from gs_propeller.solver.ranks import Ranks
from tests import tiny_prior, toy_field
from tests.test_march import DENSE, NEUS, worst
from tests.test_ranks import other_rank
from tests.toy_field import RANKED, UPDATES, scene

ROOT = Path(__file__).parent.parent
NOTHING = {f"lambda_{name}": 0.0 for name in {*LOSSES, *tets.LOSSES}}


# ---- one update


def same(one: FieldState, other: FieldState) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def later(made: Distilled, steps: int) -> FieldState:
    """The state after a few serial steps."""
    state = made.first()
    for step in range(steps):
        state = made.update(state, made.compute([state.params], [step])[0].at(state))[0]
    return state


EVERY = [("sdf" if name == "eikonal" else "field", name) for name in LOSSES]
EVERY += [("tetrahedra", name) for name in tets.LOSSES]


@pytest.mark.parametrize("travels", ["pictures", "gradients"])
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_each_loss_alone_moves_the_field(kind: str, name: str, travels: str) -> None:
    crooked = scene(scene=kind).first()
    way = crooked.params.map(lambda x: 0.2 * torch.sin(9.0 * torch.arange(x.numel()).reshape(x.shape)))
    state = replace(crooked, params=way, step=3)
    made = scene(scene=kind, travels=travels, **(NOTHING | {f"lambda_{name}": 5.0}))
    drift = made.compute([state.params], [3])[0].at(state)
    after, cheap = made.update(state, drift)
    losses = dict(zip(made.losses, torch.cat([drift.losses, cheap]).tolist(), strict=True))
    own, of_novel = losses.pop(name), name in ("eikonal", "laplacian", "consistency")
    assert not any(losses.values()) and (own > 0 or (of_novel and travels == "gradients"))
    assert max(float(m.abs().max()) for m in after.exp_avg.levels) > 0
    nothing = scene(scene=kind, travels=travels, **NOTHING)
    still = nothing.update(state, nothing.compute([state.params], [3])[0].at(state))[0]
    assert max(float(m.abs().max()) for m in still.exp_avg.levels) == 0


@pytest.mark.parametrize("kind", ["field", "sdf", "tetrahedra"])
def test_at_the_guess_pictures_pull_as_gradients_do(kind: str) -> None:
    made = scene(scene=kind)
    paper = replace(made, settings=replace(made.settings, travels="gradients"))
    state = later(made, 3)
    fresh = replace(state, exp_avg=state.exp_avg.map(torch.zeros_like))
    ours, theirs = (
        x.update(fresh, x.compute([state.params], [3])[0].at(state))[0].exp_avg for x in (made, paper)
    )
    assert worst(ours.levels, theirs.levels) < 2e-5


def test_adam_is_torch_s_with_a_rate_for_each_channel() -> None:
    made = scene(grid_lr_share=0.25, grid_eps=1e-15)
    state = later(made, 2)
    generator = torch.Generator().manual_seed(0)
    grads = state.params.map(lambda x: torch.randn(x.shape, generator=generator))
    ours = made.descended(state, grads)
    theta = state.params.levels[1].clone().requires_grad_()
    left = 0.25 ** (2 / UPDATES)
    for channels, rate in ((slice(0, 1), made.field.density_lr), (slice(1, 4), made.field.colour_lr)):
        part = theta.detach()[..., channels].clone().requires_grad_()
        adam = torch.optim.Adam([part], left * rate, betas=made.field.betas, eps=1e-15)
        moments = (m.levels[1][..., channels].clone() for m in (state.exp_avg, state.exp_avg_sq))
        adam.state[part] = dict(
            zip(("step", "exp_avg", "exp_avg_sq"), (torch.tensor(2.0), *moments), strict=True)
        )
        part.grad = grads.levels[1][..., channels].clone()
        adam.step()
        assert torch.allclose(ours.params.levels[1][..., channels], part, rtol=0, atol=1e-6)


def test_distances_and_mismatch() -> None:
    made = scene()
    one = later(made, 2)
    two = replace(one, params=one.params.map(lambda x: x + 0.1))
    (pull,) = made.compute([one.params], [2])
    assert made.distance(one, one) == made.mismatch(one, pull) == 0.0
    assert made.distance(two, one) == pytest.approx(0.01, rel=1e-5) and made.mismatch(two, pull) > 0
    scaled = scene(distance="scaled", atol=0.05, rtol=0.0)
    assert scaled.distance(two, one) == pytest.approx(2.0, rel=1e-5)
    none = replace(one, params=one.params.map(lambda x: x * math.nan))
    assert math.isnan(scaled.distance(none, one))


@pytest.mark.parametrize("travels", ["pictures", "gradients"])
def test_what_is_not_finite_is_named_or_skipped(travels: str) -> None:
    made = scene(travels=travels)
    state = replace(made.first(), step=7)
    (drift,) = made.compute([state.params], [7])
    assert made.known is not None
    blind = replace(made, known=replace(made.known, image=torch.full((1, 3, 16, 16), math.inf)))
    with pytest.raises(FloatingPointError, match=r"step 7: loss .*rgb.*: the gradient of level 0"):
        blind.update(state, drift)
    skipping = replace(blind, settings=replace(blind.settings, nonfinite="skip"))
    assert skipping.update(state, drift)[0].step == 8


# ---- whole runs


def run(
    made: Distilled, ranks: Ranks, window: int, tail: str = "momentum", held: list[Any] | None = None,
    begin: Window[FieldState] | None = None,
) -> Window[FieldState]:  # fmt: skip
    logged = Logged()
    task = problem(made, ranks, logged)
    settings = Settings(made.steps, window, 0.0, ema=1.0, tail=tail)
    again = begin and resume(begin.states, begin.start, begin.threshold, task, settings)

    def on_pass(now: Window[FieldState], report: Any) -> None:
        assert all(len(row) == len(made.losses) for row in logged.rows(report))
        if held is not None:
            held.append(now)

    return solve(task, settings, again or made.first(), on_pass)


@cache
def serial(kind: str, travels: str, k: int) -> FieldState:
    """A plain loop's last state."""
    made = toy_field.made(kind, travels, k)
    return later(made, made.steps)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "tail"), [(1, "copy"), (3, "copy"), (8, "momentum")])
@pytest.mark.parametrize(("kind", "travels", "k"), RANKED)
def test_threshold_0_is_the_serial_loop(kind: str, travels: str, k: int, window: int, tail: str) -> None:
    made = toy_field.made(kind, travels, k)
    with Ranks() as ranks:
        ranks.begin(0, made.compute)
        done = run(made, ranks, window, tail)
    assert same(done.states[0], serial(kind, travels, k)) and done.states[0].step == UPDATES


@pytest.mark.slow
def test_taken_up_from_a_checkpoint_with_another_window(tmp_path: Path) -> None:
    made, held, file = scene(scene="sdf"), list[Window[FieldState]](), tmp_path / checkpoint.FILE
    with Ranks() as ranks:
        ranks.begin(0, made.compute)
        run(made, ranks, 3, held=held)
        checkpoint.save(file, held[len(held) // 2], "{}", 1.0)
        found = checkpoint.restore(file, "{}", FieldState.from_tensors)
        assert found is not None and 0 < found[0].start < made.steps
        assert same(run(made, ranks, 5, begin=found[0]).states[0], serial("sdf", "pictures", 1))


@pytest.mark.slow
@pytest.mark.parametrize("travels", ["pictures", "gradients"])
def test_two_ranks_equal_one(travels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job for job, (_, what, _) in enumerate(RANKED) if what == travels]
    expected = {job: serial(*RANKED[job]) for job in jobs}
    program = str(ROOT / "tests" / "toy_field.py")
    with (
        other_rank(1, travels, tmp_path / "other", monkeypatch, program) as process,
        Ranks(timeout_s=120.0, kinds=toy_field.travellers(travels)) as ranks,
    ):
        for job in jobs:
            made = toy_field.ranked(job)
            ranks.begin(job, made.compute)
            for window in (2, 5):
                assert same(run(made, ranks, window).states[0], expected[job]), (RANKED[job], window)
        ranks.close()
        assert process.wait(timeout=90) == 0


# ---- meshes


@pytest.mark.parametrize("resolution", [48, 64])
def test_the_mesh_of_a_ball_of_distances(resolution: int) -> None:
    mesh = extract_field(first_state(16, 2).params, NEUS, resolution, 1500).trimesh()
    assert mesh.is_watertight and mesh.volume > 0
    radii = np.linalg.norm(mesh.vertices, axis=1)
    assert abs(radii - 0.5).max() < 0.03  # 0.013: decimation, and distances trilinear in cells of an eighth


def test_a_density_s_mesh_is_the_one_that_fits() -> None:
    """Where no silhouettes judge, the typical density; else whichever they like, between the ones tried too."""
    params = first_state(16, 2).params

    def liked(volume: float) -> Callable[[Any], float]:
        return lambda mesh: -abs(mesh.trimesh().volume - volume)

    typical, large, small = (
        extract_field(params, DENSE, 48, 1500, judge).trimesh() for judge in (None, liked(0.4), liked(0.0))
    )
    assert all(mesh.is_watertight for mesh in (typical, large, small))
    assert small.volume <= typical.volume < large.volume
    with pytest.raises(UserError, match="not finite; run again with resume=false"):
        extract_field(params.map(lambda x: x * math.nan), DENSE)


# ---- the program


SMALL = [
    "steps=6", "batch_size=2", "reference_size=16", "grid_cells=16", "grid_levels=2", "mesh_resolution=24",
    "mesh_faces=300", "texture_size=64", "bake_views=8", "bake_size=64", "turntable_frames=0", "turntable_size=32",
    "threads=1", "device=cpu", "threshold=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[16:48, 22:46] = (200, 80, 40, 255)
    path = tmp_path_factory.mktemp("picture") / "thing.png"
    Image.fromarray(rgba).save(path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero123_nerf", "textmesh", "dreamfusion"])
def test_a_picture_or_a_sentence_becomes_a_mesh(
    config: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All files but Gaussians' own; a longer run goes on, one of another kind does not."""
    told = (
        [f"prior={tiny_prior.write(tmp_path / 'prior')}", f"input={picture}"]
        if config == "zero123_nerf"
        else [f"text_prior={tiny_prior.write_text(tmp_path / 'prior')}", "prompt=red box"]
    )
    words = [
        "--config",
        str(ROOT / "configs" / f"{config}.yaml"),
        *told,
        *SMALL,
        f"outdir={tmp_path}",
        "name=thing",
    ]
    assert main_propeller.main(words) == 0
    folder = tmp_path / "thing"
    for name in ("thing.obj", "thing.glb"):
        assert load_mesh(folder / name).mesh.trimesh().is_watertight
    assert Image.open(folder / "thing_sheet.png").size[0] > 100 and not (folder / "thing.ply").exists()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 3] and set(CHEAP) <= set(lines[0])
    assert main_propeller.main([*words, "steps=9", "window=2"]) == 0
    other = "sdf" if config != "textmesh" else "field"
    assert main_propeller.main([*words, "steps=9", f"scene={other}"]) == 2
    assert f"(here {other})" in capsys.readouterr().err


def test_what_only_gaussians_have_is_refused(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(ROOT / "configs" / "zero123_nerf.yaml"), f"input={picture}", "compressed=spz"]
    assert main_propeller.main(words) == 2
    assert "compressed=spz holds Gaussians and scene=field has none" in capsys.readouterr().err


def test_losses_of_a_picture_of_one_pixel_are_numbers() -> None:
    scene = toy_field.scene(render_size=1)
    _, losses = scene.update(scene.first(), scene.compute([scene.first().params], [0])[0])
    assert all(torch.isfinite(torch.as_tensor(loss)).all() for loss in losses) and len(losses) > 2


def test_bad_grids_are_named() -> None:
    with pytest.raises(UserError, match=r"grid_cells=20 cannot be halved 3 times; .* a multiple of 8"):
        Config(grid_cells=20, grid_levels=4)
    with pytest.raises(ValueError, match=r"level 1 must be \[9, 9, 9, 4\]"):
        Grids((torch.zeros(5, 5, 5, 4), torch.zeros(8, 8, 8, 4)))


def test_a_run_is_another_by_its_own_kind_s_options_alone() -> None:
    config = Config(prompt="a", scene="field")
    marks = {
        kind: json.loads(fingerprint(config.but(scene=kind), b"")) for kind in ("gaussians", "field", "sdf")
    }
    assert "scene" not in marks["gaussians"] and marks["sdf"]["scene"] == "sdf"
    for option, kinds in (
        ("num_points", ["gaussians"]), ("grid_cells", ["field", "sdf"]), ("lambda_eikonal", ["sdf"]),
        ("lambda_orient", ["field", "sdf"]), ("t_min", ["gaussians", "field", "sdf"]),
    ):  # fmt: skip
        assert [kind for kind, mark in marks.items() if option in mark] == kinds, option
    for name in ("zero123_nerf", "textmesh", "dreamfusion"):
        assert load(["--config", f"configs/{name}.yaml"])[0].scene in ("field", "sdf")
