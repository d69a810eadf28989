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
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from gs_propeller.scenes.gaussians import raster, raster_cuda
from gs_propeller.scenes.gaussians.raster import Rendered, render
from gs_propeller.scenes.gaussians.raster_cpu import Group
from gs_propeller.scenes.gaussians.scene import GaussianScene
from gs_propeller.scenes.gaussians.state import Gaussians, State, neighbour_distance
from tests import raster_twin, tiny_prior
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


# ---- mismatches, planted: each is raised as a real device raises it


class _LeavesItBehind(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad.cpu()


class _ReadsIt(_LeavesItBehind):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(2 * grad.numpy()).to(grad.device)


SIDES, INDICES, TYPES = "same device", "indices should be either on cpu", "dtype"
PLANTED: dict[str, tuple[type[Exception], str, Callable[[Tensor, Tensor], Any]]] = {  # of d on the device and h not
    "sum": (RuntimeError, SIDES, lambda d, h: d + h),
    "sum turned round": (RuntimeError, SIDES, lambda d, h: h * d),
    "comparison": (RuntimeError, SIDES, lambda d, h: d > h),
    "sum in place": (RuntimeError, SIDES, lambda d, h: d.add_(h)),
    "sum in place of a number of the host's": (RuntimeError, SIDES, lambda d, h: h.sum().add_(d.sum())),
    "sum into the host's": (RuntimeError, SIDES, lambda d, h: torch.add(d, d, out=h)),
    "cat": (RuntimeError, SIDES, lambda d, h: torch.cat([d, h])),
    "stack of numbers": (RuntimeError, SIDES, lambda d, h: torch.stack([d.sum(), h.sum()])),
    "where": (RuntimeError, SIDES, lambda d, h: torch.where(d > 0, d, h)),
    "where by the host's mask": (RuntimeError, SIDES, lambda d, h: torch.where(h > 0, d, 0.0)),
    "masked_fill": (RuntimeError, SIDES, lambda d, h: d.masked_fill(h > 0, 0.0)),
    "matmul": (RuntimeError, SIDES, lambda d, h: d @ h),
    "einsum": (RuntimeError, SIDES, lambda d, h: torch.einsum("ij,jk->ik", d, h)),
    "host indexed by the device's": (RuntimeError, INDICES, lambda d, h: h[d[0].long()]),
    "host masked by the device's": (RuntimeError, INDICES, lambda d, h: h[d > 0]),
    "values put from the host": (RuntimeError, SIDES, lambda d, h: d.__setitem__(d > 0, h[h > 0])),
    "index_add": (RuntimeError, SIDES, lambda d, h: d.index_add(0, torch.tensor([0]), d[:1])),
    "gather": (RuntimeError, SIDES, lambda d, h: d.gather(0, h.long().clamp(0, 1))),
    "lerp": (RuntimeError, SIDES, lambda d, h: d.lerp(h, 0.5)),
    "loss": (RuntimeError, SIDES, lambda d, h: F.mse_loss(d, h)),
    "module left behind": (RuntimeError, SIDES, lambda d, h: nn.Linear(3, 3)(d)),
    "picture left behind": (RuntimeError, SIDES, lambda d, h: nn.Conv2d(1, 1, 1).to("cuda")(h[None, None])),
    "grid_sample": (RuntimeError, SIDES, lambda d, h: F.grid_sample(d[None, None], h[None, None, :, :2])),
    "embedding": (RuntimeError, SIDES, lambda d, h: F.embedding(torch.tensor([0]), d)),
    "numpy": (TypeError, "can't convert cuda:0", lambda d, h: d.numpy()),
    "asarray": (TypeError, "can't convert cuda:0", lambda d, h: np.asarray(d)),
    "array of a list": (TypeError, "can't convert cuda:0", lambda d, h: np.array([*d])),
    "numpy function": (TypeError, "can't convert cuda:0", lambda d, h: np.sqrt(d)),
    "host's generator": (RuntimeError, "generator", lambda d, h: torch.randn(3, device="cuda", generator=torch.Generator())),
    "device's generator": (RuntimeError, "generator", lambda d, h: torch.randn(3, generator=torch.Generator("cuda"))),
    "generator in place": (RuntimeError, "generator", lambda d, h: d.normal_(generator=torch.Generator())),
    "half by float": (RuntimeError, TYPES, lambda d, h: d.half() @ d),
    "half into a float module": (RuntimeError, TYPES, lambda d, h: nn.Linear(3, 3).to("cuda")(d.half())),
    "half into a float convolution": (RuntimeError, "type", lambda d, h: nn.Conv2d(1, 1, 1).to("cuda")(d.half()[None, None])),
    "gradient left behind": (
        RuntimeError, SIDES, lambda d, h: _LeavesItBehind.apply(d.detach().requires_grad_() * d).sum().backward()),
    "gradient read": (TypeError, "can't convert", lambda d, h: _ReadsIt.apply(d.requires_grad_()).sum().backward()),
    "page-locking": (RuntimeError, "cannot pin", lambda d, h: d.pin_memory()),
}  # fmt: skip
SOUND: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "number": lambda d, h: 2.0 * d + 1,
    "number of the host's": lambda d, h: d + h.sum(),
    "number on the left": lambda d, h: h.sum() * d,
    "where with a number": lambda d, h: torch.where(d > 0, d, h.sum()),
    "masked_fill by a number": lambda d, h: d.masked_fill(d > 0, h.sum()),
    "index of the host's": lambda d, h: d[h[0].long()],
    "mask of the host's": lambda d, h: d[h > 0],
    "value of the host's": lambda d, h: d.__setitem__(d > 0, h.sum()),
    "copied in": lambda d, h: d.copy_(h),
    "copied out": lambda d, h: h.copy_(d),
    "rows copied in": lambda d, h: d.__setitem__(0, h[0]),
    "brought over": lambda d, h: h.to(d) + d,
    "brought back": lambda d, h: d.cpu().numpy() + h.numpy(),
    "made there": lambda d, h: d + d.new_tensor([1.0, 2.0, 3.0]) + torch.ones(3, device=d.device),
    "drawn there": lambda d, h: torch.randn(3, device="cuda", generator=torch.Generator("cuda")) + d,
    "module moved": lambda d, h: nn.Linear(3, 3).to("cuda")(d).sum().backward(),
    "module in half": lambda d, h: nn.Linear(3, 3).to("cuda", torch.float16)(d.half()),
    "weights replaced": lambda d, h: setattr(d, "data", d.half()) or d.half() + d,
}


def _pair() -> tuple[Tensor, Tensor]:
    host = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.0, -0.5], [1.0, 1.0, 0.25]])
    return host.to("cuda"), host


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mismatch_is_caught(name: str, device: str) -> None:
    error, says, call = PLANTED[name]
    with pytest.raises(error, match=says):
        call(*_pair())


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_passes(name: str, device: str) -> None:
    SOUND[name](*_pair())


def test_it_says_what_a_device_says(device: str) -> None:
    on, host = _pair()
    assert on.is_cuda and str(on.device) == "cuda:0" == str(torch.zeros_like(on).device) and not host.is_cuda
    assert on.device == torch.device("cuda", 0) and on.to("cpu").device == torch.device("cpu")
    assert torch.equal(on.cpu(), host) and on.tolist() == host.tolist()
    layer = nn.Linear(3, 3).cuda().to(memory_format=torch.channels_last)
    assert all(isinstance(p, nn.Parameter) and p.is_cuda and p.is_leaf for p in layer.parameters())


def test_gradients_are_those_of_the_host(device: str) -> None:
    found = []
    for side in _pair():
        leaf = side.detach().requires_grad_()
        rows = torch.cat([leaf[1:], leaf[:1] ** 2])
        (rows.softmax(1) @ rows.T).tril().unbind(0)[1].sum().backward()
        assert leaf.grad is not None and leaf.grad.device == side.device
        found.append(leaf.grad.cpu())
    assert torch.equal(*found)


# ---- waits


WAITS: dict[str, tuple[list[str], Callable[[Tensor, Tensor], Any]]] = {
    "item": (["a number"], lambda d, h: d.sum().item()),
    "float": (["a number"], lambda d, h: float(d[0, 0])),
    "if": (["a number"], lambda d, h: 1 if d.sum() > 0 else 0),
    "cpu": (["to the host"], lambda d, h: d.cpu()),
    "to": (["to the host"], lambda d, h: d.to("cpu", torch.float64)),
    "tolist": (["to the host"], lambda d, h: d.tolist()),
    "copied out": (["to the host"], lambda d, h: h.copy_(d)),
    "brought over": (["to the device"], lambda d, h: h.to(d)),
    "made of numbers": (["to the device"], lambda d, h: torch.tensor([1.0, 2.0], device="cuda")),
    "host's indices": (["to the device"], lambda d, h: d[torch.tensor([0, 1])]),
    "list of indices": (["to the device"], lambda d, h: d[[0, 1]]),
    "nonzero": (["nonzero"], lambda d, h: d.nonzero()),
    "mask": (["a mask"], lambda d, h: d[d > 0]),
    "mask set": (["a mask"], lambda d, h: d.__setitem__(d > 0, 1.0)),
    "index of the device's": (["a number"], lambda d, h: d[d[0, 2].long()]),
    "unique": (["unique"], lambda d, h: d.unique()),
    "equal": (["equal"], lambda d, h: torch.equal(d, d)),
    "inverse": (["linalg's errors"], lambda d, h: torch.linalg.inv(d)),
    "repeats": (["repeats"], lambda d, h: d.repeat_interleave(d[0].long().abs(), 0)),
    "synchronize": (["synchronize"], lambda d, h: torch.cuda.synchronize()),
    "arithmetic": ([], lambda d, h: (d * 2 + h.sum()).softmax(1).argsort()),
    "rows": ([], lambda d, h: d[1:, None].expand(2, 2, 3).to(d)),
    "rows by the device's indices": ([], lambda d, h: d[d[0].argsort()]),
    "no wait asked for": ([], lambda d, h: h.to("cuda", non_blocking=True)),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_counted_at_its_line(name: str, device: str) -> None:
    kinds, call = WAITS[name]
    pair = _pair()
    with counted() as found:
        call(*pair)
    line = call.__code__.co_firstlineno
    assert dict(found) == {(f"tests/test_rehearsal.py:{line}", kind): 1 for kind in kinds}


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
        adapter(package, scene.map(Tensor.cuda).map(Tensor.double), VIEWS.to("cuda"), (16, 16), background.cuda())


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
        f"outdir={scratch / outdir}",
        *LITTLE,
        *more,
    ]


@contextmanager
def processor(backend: str = "gsplat") -> Iterator[None]:
    """Runs of device=cpu do the operations that a device would be asked for, so that their bits can be compared: by that
    rasteriser's adapter and stand-in; attention by its formula and pictures for a group norm in the plain order, as torch
    has them on other devices; and weights copied, since sums over those of a mapped file, aligned otherwise, round
    otherwise."""
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
    scene = scene_of(config, picture_of(config), load_priors(config, device, quiet=True))
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
    asked = ("batch_slots=2", "densify_from=1", "densify_every=1", "densify_until=9", "updates_per_evaluation=2")
    with processor(backend):
        here = _two_steps(*_scene(scratch, *asked, "device=cpu"))
    with pretended(), packages(BACKENDS[backend]):
        there = _two_steps(*_scene(scratch, *asked))
        assert sum(type(x) is Pretended for x in there) > len(there) // 2
        assert all(torch.equal(one, other.cpu()) for one, other in zip(here, there, strict=True))


@pytest.mark.slow
def test_half_precision_is_near(scratch: Path) -> None:
    """The prior in float16, as `precision=auto` has it there; what travels and what evolves stays float32."""
    with processor():
        here = _two_steps(*_scene(scratch, "device=cpu"))
    with pretended(), packages("gsplat"):
        scene, state = _scene(scratch, "precision=auto")
        assert scene.guides[0].prior.unet.dtype == torch.float16  # type: ignore[attr-defined]
        there = [x.cpu() for x in _two_steps(scene, state)]
    assert all(one.dtype == other.dtype and one.shape == other.shape for one, other in zip(here, there, strict=True))
    assert all(bool(x.isfinite().all()) for x in there)
    pull, halved = here[1], there[1]
    assert 0.0 < _apart(pull, halved) < 0.02  # HALF


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
        assert same(whole, _in_two_sittings(scratch, "there"))
    files = [sorted(p.name for p in (scratch / place / "thing").iterdir()) for place in ("here", "there")]
    assert files[0] == files[1] and "thing.glb" in files[1]
    assert (scratch / "here/thing/thing.ply").read_bytes() == (scratch / "there/thing/thing.ply").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("installed", [["nvdiffrast"], []])
@pytest.mark.parametrize("shape", ["train_geo=true", "train_geo=false"])
def test_a_mesh_is_refined_there_as_here(whole: State, scratch: Path, installed: list[str], shape: str) -> None:
    """On the device where nvdiffrast is installed, by torch's operations; else in the host's memory, by the kernels."""
    found = []
    for side in ("cpu", "cuda"):
        place = f"{side}-{shape}-{len(installed)}"
        shutil.copytree(scratch / "here", scratch / place)
        words = _words(scratch, place, *DENSE, shape)
        if side == "cpu":
            with processor():
                assert main2_mesh.main([*words, "device=cpu"]) == 0
        else:
            with pretended(), packages("gsplat", *installed):
                assert main2_mesh.main(words) == 0
        found.append(load_mesh(scratch / place / "thing" / "thing_refined.obj"))
    here, there = found
    before = load_mesh(scratch / "here" / "thing" / "thing.obj")
    assert float((here.texture - before.texture).abs().max()) > 0.01  # it has learnt
    assert float((here.texture - there.texture).abs().mean()) < 1e-3  # TEXTURE
    assert _apart(here.mesh.vertices, there.mesh.vertices) < 1e-3  # VERTICES


@pytest.mark.slow
def test_a_sentence_becomes_an_asset_there(scratch: Path) -> None:
    words = ["--config", str(ROOT / "configs" / "text.yaml"), "prompt=a red dog", f"text_prior={scratch / 'text_prior'}",
             f"outdir={scratch / 'text'}", *LITTLE, *DENSE, "name=thing"]  # fmt: skip
    with processor():
        assert main_propeller.main([*words, "device=cpu", "batch_slots=3"]) == 0
        here = _last(scratch, "text")
        shutil.rmtree(scratch / "text")
    with pretended(), packages("gsplat"):
        assert main_propeller.main(words) == 0
        assert same(here, _last(scratch, "text"))
        assert main2_mesh.main(words) == 0
    assert (scratch / "text" / "thing" / "thing_refined.glb").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the other rank is a fork of this process")
def test_two_ranks_there_are_one_here(whole: State, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact, so that any window's result is the serial one. The other rank is forked: it has all modules at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in (world | {"GLOO_SOCKET_IFNAME": "lo", "RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    exact = ["threshold=0", "ema=1", "batch_slots=1", "timeout_s=120"]

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
    assert same(_last(scratch, "ranks"), _last(scratch, "one rank"))


# ---- what a step costs in waits


@pytest.mark.slow
def test_a_step_waits_no_more_than_it_did(scratch: Path) -> None:
    """Every one stalls a GPU's queue: whoever adds one raises the figure here, and says why; `python -m bench.waits` shows
    where they are."""
    from bench.waits import step_waits

    with pretended(), packages("gsplat"):
        found = step_waits(*_scene(scratch, "updates_per_evaluation=1", "densify_every=2"))
    assert {part: sum(counts.values()) for part, counts in found.items()} == {
        "guess": 1,
        "evaluation": 9,
        "roll-out": 12,
        "roll-out with density control": 17,
    }
