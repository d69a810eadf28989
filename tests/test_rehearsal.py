"""The CUDA path rehearsed without a GPU: on a pretended device (tests/pretended) the program gives what it gives on the
processor, nothing is left on the wrong side, and the host waits no more often than it is known to.

Where both sides run the same operations the results are compared with ==: the processor's run then draws by the same
stand-in, and its attention by the same formula.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import main2_mesh
import main_propeller
from bench.waits import step_waits
from gs_propeller.app import asset, elevation
from gs_propeller.app.asset import scene_of
from gs_propeller.app.config import load
from gs_propeller.app.devices import device_of
from gs_propeller.app.guides import load_priors, picture_of
from gs_propeller.app.log import Progress
from gs_propeller.base.camera import orbit
from gs_propeller.base.files import load_tensors
from gs_propeller.distil.pull import Pull
from gs_propeller.mesh.foreign import load_mesh
from gs_propeller.mesh.raster import rasterize
from gs_propeller.mesh.surface import Mesh
from gs_propeller.mesh.texture import Textured
from gs_propeller.scenes.gaussians.raster import cuda as raster_cuda
from gs_propeller.scenes.gaussians.raster import render as raster
from gs_propeller.scenes.gaussians.raster.cpu import Group
from gs_propeller.scenes.gaussians.raster.render import render
from gs_propeller.scenes.gaussians.scene import GaussianScene
from gs_propeller.scenes.gaussians.state import Gaussians, State, neighbour_distance
from tests import raster_twin, tiny_prior
from tests.ports import world_of_two
from tests.pretended import packages as stand_ins
from tests.pretended.device import Pretended, counted, pretended
from tests.pretended.packages import packages
from tests.test_main import SMALL, same

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real device here")

ROOT = Path(__file__).parent.parent
BACKENDS = {"gsplat": "gsplat", "inria": "diff_gaussian_rasterization"}
VIEWS = orbit([0.3, 2.1], [0.2, -0.4], [2.0, 1.7], 0.857)
LITTLE = [word for word in SMALL if not word.startswith("device=")] + [
    "turntable_frames=0",
    "bake_views=4",
    "mesh_resolution=24",
    "window=3",
    "threshold=1e-3",
    "precision=float32",
]


@pytest.fixture
def device() -> Iterator[str]:
    """The pretended one, with every package installed."""
    with pretended(), packages(*stand_ins.NAMES):
        yield "cuda"


# ---- packages


def test_stand_ins_have_the_packages_own_signatures() -> None:
    """Of those that are installed; on a machine without them it is this file's author who read them."""
    compared = 0
    for name, members in {
        "gsplat": {"rasterization": stand_ins.rasterization},
        "nvdiffrast.torch": {"rasterize": stand_ins.rasterize},
        "diff_gaussian_rasterization": {"GaussianRasterizationSettings": stand_ins.GaussianRasterizationSettings},
    }.items():  # fmt: skip
        if not raster_cuda.installed(name.partition(".")[0]):
            continue
        package = __import__(name, fromlist=list(members))
        for member, ours in members.items():
            theirs = inspect.signature(getattr(package, member))
            assert list(inspect.signature(ours).parameters) == list(theirs.parameters), member
            compared += 1
    if not compared:
        pytest.skip("no such package is installed")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sh_degree", [0, 2])
def test_a_render_there_is_the_render_here(backend: str, sh_degree: int, device: str) -> None:
    scene, background = raster_twin.ball(40, sh_degree, 1, scale=(0.02, 0.2)), torch.tensor([0.9, 0.4, 0.1])
    found = []
    for side, by in (("cpu", "cpu"), ("cuda", backend)):
        leaves = scene.map(partial(_leaf, side))
        rendered = render(leaves, VIEWS.to(side), (32, 48), background.to(side), backend=by)
        (rendered.image.square().sum() + rendered.alpha.sum() + rendered.depth.cos().sum()).backward()
        shown = [rendered.image, rendered.alpha, rendered.depth, rendered.radii_px, rendered.means2d]
        grads = [rendered.means2d.grad, *(x.grad for _, x in leaves.items() if x.numel())]
        assert all(x is not None and x.device.type == side for x in (*shown, *grads))
        found.append([x.detach().cpu() for x in (*shown, *grads)])  # type: ignore[union-attr]
    for here, there in zip(*found, strict=True):
        assert _apart(here, there) < 1e-5  # 4e-6: exp and log of scales, sigmoid and logit


def _leaf(side: str, x: Tensor) -> Tensor:
    return x.detach().to(side, torch.float32, copy=True).requires_grad_()


def _apart(one: Tensor, other: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rasteriser_refuses_what_it_could_not_read(backend: str, device: str) -> None:
    adapter = {"gsplat": raster_cuda._render_gsplat, "inria": raster_cuda._render_inria}[backend]
    package = __import__(BACKENDS[backend])
    scene, background = raster_twin.ball(4, 0, 0).map(Tensor.float), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="must be a cuda tensor"):
        adapter(package, scene, VIEWS, (16, 16), background)
    with pytest.raises(RuntimeError, match=r"must be torch.float32|same dtype"):
        adapter(
            package, scene.map(Tensor.cuda).map(Tensor.double), VIEWS.to("cuda"), (16, 16), background.cuda()
        )


def test_a_mesh_there_is_the_mesh_here(device: str) -> None:
    import trimesh

    solid = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
    here = Mesh(torch.tensor(solid.vertices, dtype=torch.float32), torch.tensor(solid.faces).long())
    there = Mesh(here.vertices.cuda(), here.faces.cuda())
    one, other = rasterize(here, VIEWS, (48, 64)), rasterize(there, VIEWS.to("cuda"), (48, 64))
    assert other.face_id.is_cuda and other.depth.is_cuda
    same_face = one.face_id == other.face_id.cpu()
    assert float(same_face.float().mean()) > 0.999  # the rest lies on edges
    seen = same_face & one.mask
    assert _apart(one.depth[seen], other.depth.cpu()[seen]) < 1e-5
    assert torch.allclose(one.barycentric[seen], other.barycentric.cpu()[seen], atol=1e-4)


def test_neighbours_there_are_the_neighbours_here(device: str) -> None:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(neighbour_distance(points.cuda()).cpu(), neighbour_distance(points), rtol=1e-5)


# ---- the dear part and the cheap part of a step


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """thing.png, and the folders of two priors."""
    folder = tmp_path_factory.mktemp("rehearsal")
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[10:54, 20:50, :3] = np.random.default_rng(0).integers(0, 255, (44, 30, 3))
    rgba[10:54, 20:50, 3] = 255
    Image.fromarray(rgba).save(folder / "thing.png")
    tiny_prior.write(folder / "prior")
    tiny_prior.write_text(folder / "text_prior")
    return folder


def _words(scratch: Path, outdir: str, *more: str) -> list[str]:
    return [
        "--config",
        str(ROOT / "configs" / "image.yaml"),
        f"prior={scratch / 'prior'}",
        f"input={scratch / 'thing.png'}",
        "elevation=0",
        f"outdir={scratch / outdir}",
        *LITTLE,
        *more,
    ]


@contextmanager
def processor(backend: str = "gsplat") -> Iterator[None]:
    """Runs of device=cpu do the operations that a device would be asked for, so that their bits can be compared.

    They draw by that rasteriser's adapter and stand-in. Attention goes by its formula, and pictures are in the plain
    order for a group norm, as torch has both on other devices. Weights are copied: sums over those of a mapped file,
    aligned otherwise, round otherwise.
    """
    adapter = {"gsplat": raster_cuda._render_gsplat, "inria": raster_cuda._render_inria}[backend]
    norm, to = F.group_norm, nn.Module.to

    def drawn(gaussians: Gaussians, groups: Sequence[Group]) -> list[Any]:
        return [adapter(__import__(BACKENDS[backend]), gaussians, *group) for group in groups]

    def copied(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return to(module, *args, **kwargs)._apply(torch.clone)

    with (
        packages(BACKENDS[backend], place="cpu"),
        sdpa_kernel(SDPBackend.MATH),
        mock.patch.object(F, "group_norm", lambda x, *rest: norm(x.contiguous(), *rest)),
        mock.patch.object(nn.Module, "to", copied),
        mock.patch.dict(raster.BACKENDS, cpu=drawn),
    ):
        yield


def _scene(scratch: Path, *more: str) -> tuple[GaussianScene, State]:
    config, _ = load(_words(scratch, "none", *more))
    device = device_of(config)
    scene = scene_of(config, picture_of(config), load_priors(config, device))
    return scene, scene.first(device)


def _two_steps(scene: GaussianScene, state: State) -> list[Tensor]:
    """Of two evaluations at once and two roll-out steps, all that comes of them."""
    guess = scene.coast(state)
    drifts = scene.compute([state.params, guess.params], [0, 1])
    found: list[Tensor] = []
    for drift in drifts:
        if isinstance(drift, Pull):
            found.append(torch.tensor(scene.mismatch(state, drift)))
        state, losses = scene.update(state, drift)
        found += [*drift.parts(), losses]
    found.append(torch.tensor(scene.distance(state, guess)))
    return found + list(state.tensors().values())


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_there_is_the_step_here(backend: str, scratch: Path) -> None:
    """Drift and roll-out to the bit."""
    asked = (
        "batch_slots=2",
        "densify_from=1",
        "densify_every=1",
        "densify_until=9",
        "updates_per_evaluation=2",
    )
    with processor(backend):
        here = _two_steps(*_scene(scratch, *asked, "device=cpu"))
    with pretended(), packages(BACKENDS[backend]):
        there = _two_steps(*_scene(scratch, *asked))
        assert sum(type(x) is Pretended for x in there) > len(there) // 2
        assert all(torch.equal(one, other.cpu()) for one, other in zip(here, there, strict=True))


@pytest.mark.slow
def test_a_prior_may_stand_apart_from_the_scene(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As device=mps has it: the prior on a device, the scene and its rasteriser on the processor."""
    scene, state = _scene(scratch, "device=cpu")
    (here,) = scene.compute([state.params], [0])
    monkeypatch.setattr(asset, "scene_device", lambda prior: torch.device("cpu"))
    with pretended():
        config, _ = load(_words(scratch, "none", "device=cpu"))
        priors = load_priors(config, torch.device("cuda"))
        scene = scene_of(config, picture_of(config), priors)
        (there,) = scene.compute([state.params], [0])
        after, _ = scene.update(state, there)
        assert priors.first.device.type == "cuda"
    found = [*there.parts(), *after.tensors().values()]
    assert not any(type(x) is Pretended for x in found)
    # 6e-7: attention goes by another formula there
    assert max(_apart(one, other) for one, other in zip(here.parts(), there.parts(), strict=True)) < 2e-6


@pytest.mark.slow
def test_the_elevation_is_found_out_there_as_here(scratch: Path) -> None:
    found = []
    for place in ("cpu", "cuda"):
        with pretended():
            config, _ = load(_words(scratch, "none", "device=cpu", "elevation=auto"))
            priors, picture = load_priors(config, torch.device(place)), picture_of(config)
            assert picture is not None and priors.zero123 is not None
            found.append(elevation.estimated(config, picture, priors.zero123))
    assert found[0] == found[1] and -20 <= found[0] <= 50


@pytest.mark.slow
def test_half_precision_is_near(scratch: Path) -> None:
    """The prior in float16, as `precision=auto` has it there; what travels and what evolves stays float32."""
    with processor():
        here = _two_steps(*_scene(scratch, "device=cpu"))
    with pretended(), packages("gsplat"):
        scene, state = _scene(scratch, "precision=auto")
        assert scene.guides[0].prior.unet.dtype == torch.float16  # type: ignore[attr-defined]
        there = [x.cpu() for x in _two_steps(scene, state)]
    assert all(
        one.dtype == other.dtype and one.shape == other.shape for one, other in zip(here, there, strict=True)
    )
    assert all(bool(x.isfinite().all()) for x in there)
    pull, halved = here[1], there[1]
    assert 0.0 < _apart(pull, halved) < 4e-3  # 1.2e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        ["loss=vsd", "precision=float16", "nonfinite=skip"],
        ["travels=gradients", "distance=scaled"],
        ["sds_space=latent", "attention_slicing=on", "sh_degree=2", "follows=measured", "raster=inria"],
    ],
)
def test_other_ways_of_a_step_leave_nothing_behind(asked: list[str], scratch: Path) -> None:
    with pretended(), packages(*BACKENDS.values()):
        found = _two_steps(*_scene(scratch, *asked))
        assert sum(type(x) is Pretended for x in found) > len(found) // 2
        assert all(bool(x.isfinite().all()) for x in found)


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["field", "sdf"])
@pytest.mark.parametrize("travels", ["pictures", "gradients"])
def test_a_field_there_is_near_the_field_here(scene: str, travels: str, scratch: Path) -> None:
    """Torch's operations there, compiled kernels here: the drift at the first guess, and what comes of two steps."""
    asked = (
        f"scene={scene}",
        f"travels={travels}",
        "grid_cells=16",
        "grid_levels=2",
        "lambda_orient=1",
        "grid_eps=1",
    )
    with processor():
        here = _two_steps(*_scene(scratch, *asked, "device=cpu"))
    with pretended(), packages("gsplat"):
        there = _two_steps(*_scene(scratch, *asked))
        assert sum(type(x) is Pretended for x in there) > len(there) // 2
        there = [x.cpu() for x in there]
    found = [_apart(one, other) for one, other in zip(here, there, strict=True) if float(one.abs().max())]
    assert len(found) > 12 and max(found) < 2.5e-4  # 9e-5, of a mismatch, which is small


# ---- whole runs

DENSE = ["steps=12", "updates_per_evaluation=1", "checkpoint_every_s=0"]


def _last(scratch: Path, outdir: str, steps: int = 12) -> State:
    tensors, meta = load_tensors(scratch / outdir / "thing" / "checkpoint.safetensors")
    assert meta["start"] == steps
    return State.from_tensors({key[2:]: value for key, value in tensors.items() if key.startswith("0/")})


def _run(scratch: Path, outdir: str, *more: str) -> int:
    return main_propeller.main(_words(scratch, outdir, *DENSE, *more))


def _in_two_sittings(scratch: Path, outdir: str, *more: str) -> State:
    """Ctrl-C in the middle, then the same command again."""
    shown = Progress.update

    def interrupting(self: Progress, step: int, **values: str) -> None:
        shown(self, step, **values)
        if step >= 5:
            os.kill(os.getpid(), signal.SIGINT)

    with mock.patch.object(Progress, "update", interrupting):
        assert _run(scratch, outdir, *more) == 130
    assert _run(scratch, outdir, *more) == 0
    return _last(scratch, outdir)


@pytest.fixture(scope="module")
def whole(scratch: Path) -> State:
    """A run on the processor over clones, splits, prunes and a reset, its files in `here`. In two sittings too: torch's
    exponential rounds rows that lie together, as those from a file do, otherwise than rows of a table."""
    with processor():
        return _in_two_sittings(scratch, "here", "device=cpu", "batch_slots=3")


@pytest.mark.slow
def test_a_run_stopped_and_gone_on_there_is_the_run_here(whole: State, scratch: Path) -> None:
    """To the bit, from the first state to every file, over density control and a checkpoint."""
    births = whole.lineage[:, 0, 1]
    assert int((births >= 0).sum()) > 0 and len(whole) < 150 + int((births >= 0).sum())  # born and pruned
    with pretended(), packages("gsplat", "simple_knn"):
        assert same(whole, _in_two_sittings(scratch, "there", "batch_slots=3"))
    files = [sorted(p.name for p in (scratch / place / "thing").iterdir()) for place in ("here", "there")]
    assert files[0] == files[1] and "thing.glb" in files[1]
    assert (scratch / "here/thing/thing.ply").read_bytes() == (scratch / "there/thing/thing.ply").read_bytes()


def _refined(scratch: Path, outdir: str, *more: str) -> Textured:
    """By the second stage, of the run on the processor."""
    shutil.copytree(scratch / "here", scratch / outdir)
    assert main2_mesh.main(_words(scratch, outdir, *DENSE, *more)) == 0
    return load_mesh(scratch / outdir / "thing" / "thing_refined.obj")


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["train_geo=true", "train_geo=false"])
def test_a_mesh_is_refined_there_as_here(whole: State, scratch: Path, shape: str) -> None:
    """On the device where nvdiffrast is installed, by torch's operations; else in the host's memory, by the kernels."""
    with processor():
        here = _refined(scratch, f"here-{shape}", shape, "device=cpu")
    before = load_mesh(scratch / "here" / "thing" / "thing.obj")
    assert float((here.texture - before.texture).abs().max()) > 0.01  # it has learnt
    for installed in (["nvdiffrast"], []) if shape == "train_geo=true" else (["nvdiffrast"],):
        with pretended(), packages("gsplat", *installed), counted() as waited:
            there = _refined(scratch, f"{len(installed)}-{shape}", shape)
        on_device = any("mesh/raster.py" in place for place, _ in waited)
        assert on_device == bool(installed)
        assert float((here.texture - there.texture).abs().mean()) < 1e-5  # 0: colours of 8 bits
        assert _apart(here.mesh.vertices, there.mesh.vertices) < 6e-5  # 2e-5


@pytest.mark.slow
def test_a_sentence_becomes_an_asset_there(scratch: Path) -> None:
    words = ["--config", str(ROOT / "configs" / "text.yaml"), f"text_prior={scratch / 'text_prior'}",
             "prompt=a red dog", "name=thing", f"outdir={scratch / 'text'}", *LITTLE, *DENSE, "steps=4"]  # fmt: skip
    with processor():
        assert main_propeller.main([*words, "device=cpu", "batch_slots=3"]) == 0
        here = _last(scratch, "text", 4)
        shutil.rmtree(scratch / "text")
    with pretended(), packages("gsplat"):
        assert main_propeller.main(words) == 0
        assert same(here, _last(scratch, "text", 4))
        assert main2_mesh.main(words) == 0
    assert (scratch / "text" / "thing" / "thing_refined.glb").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the other rank is a fork of this process")
def test_two_ranks_there_are_one_here(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact, so that any window's result is the serial one. The other rank is forked: it has all modules at once."""
    for name, value in (world_of_two() | {"RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    exact = ["steps=6", "threshold=0", "ema=1", "batch_slots=1", "timeout_s=120"]

    def other() -> None:
        os.environ |= {"RANK": "1", "LOCAL_RANK": "1"}
        with pretended(), packages("gsplat"):
            _run(scratch, "ranks", *exact)

    process = multiprocessing.get_context("fork").Process(target=other)
    process.start()
    with pretended(), packages("gsplat"):
        assert _run(scratch, "ranks", *exact) == 0
    process.join(60)
    assert process.exitcode == 0
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    with processor():
        assert _run(scratch, "one rank", *exact, "device=cpu") == 0
    assert same(_last(scratch, "ranks", 6), _last(scratch, "one rank", 6))


# ---- what a step costs in waits


@pytest.mark.slow
def test_a_step_waits_no_more_than_it_did(scratch: Path) -> None:
    """Every one stalls a GPU's queue. Whoever adds one raises the figure here and says why; `python -m bench.waits`
    shows where they are."""
    with pretended(), packages("gsplat"):
        found = step_waits(*_scene(scratch, "updates_per_evaluation=1", "densify_every=2"))
    assert {part: sum(counts.values()) for part, counts in found.items()} == {
        "guess": 1,
        "evaluation": 10,  # one for the views' variants, where the prior is asked in them
        "roll-out": 12,
        "roll-out with density control": 17,
    }
