"""What a machine with a GPU meets first: which device is taken, what is compiled, fetched and tried before ranks start.

No GPU is needed: torch.cuda answers as if there were two, and the packages are stand-ins.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trimesh
from torch import Tensor

from gs_propeller import command
from gs_propeller.app import devices
from gs_propeller.app.config import Config
from gs_propeller.base import locks
from gs_propeller.base.errors import UserError
from gs_propeller.mesh import raster as mesh_raster
from gs_propeller.mesh.surface import Mesh
from gs_propeller.scenes.gaussians.raster import cuda as raster_cuda
from gs_propeller.scenes.gaussians.raster import ready as raster_ready
from gs_propeller.scenes.gaussians.raster import render as raster
from gs_propeller.scenes.gaussians.raster.render import gathered, render, render_groups
from gs_propeller.solver import launcher
from tests import raster_twin as twin
from tests.test_backends import BACKGROUND, VIEWS, gsplat_rasterization

IMAGE = str(Path(__file__).parent.parent / "configs" / "image.yaml")
NEEDS = "raster backend 'gsplat' needs the package gsplat: pip install --no-build-isolation -r requirements-cuda.txt"


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two of them, and nothing found out about them yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(raster_ready.FOUND, "{}")
    monkeypatch.delenv(raster_ready.FOUND)  # whatever a test leaves there goes with it
    kept = raster_ready.tried, mesh_raster.tried
    for answers in kept:
        answers.cache_clear()
    yield
    for answers in kept:
        answers.cache_clear()


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """The troubles of the backends, to be set; none has any at first."""
    troubles: dict[str, str | None] = {"gsplat": None, "inria": None}
    monkeypatch.setattr(raster_ready, "trouble", lambda backend: troubles[backend])
    monkeypatch.setattr(devices, "try_apart", lambda raster: None)
    return troubles


# --- which device


def test_an_apple_gpu_has_the_prior_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a machine has no CUDA; here its answers alone are played."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=mps, but torch sees no Apple GPU; use device=auto"):
        devices.device_of(Config(device="mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    there = devices.device_of(Config(device="mps"))
    assert (there.type, devices.scene_device(there).type) == ("mps", "cpu")
    assert devices.scene_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert devices.precision_of(Config(), there) == torch.float32
    assert devices.rank_count(Config(device="mps")) == 1


@pytest.mark.parametrize(
    ("options", "broken", "device", "backend", "said"),
    [
        ({}, (), "cuda", "gsplat", ""),
        ({}, ("gsplat",), "cuda", "inria", ""),
        ({}, ("gsplat", "inria"), "cpu", "cpu", "note: on the CPU, though there is a GPU: no gsplat; or device=cuda"),
        ({"device": "cuda"}, ("gsplat", "inria"), "cuda", "cpu", "note: the CPU draws the Gaussians: no gsplat"),
        ({"raster": "cpu"}, ("gsplat", "inria"), "cuda", "cpu", ""),
        ({"raster": "inria"}, ("gsplat",), "cuda", "inria", ""),
        ({"device": "cpu"}, ("gsplat", "inria"), "cpu", "cpu", ""),
    ],
)  # fmt: skip
def test_auto_takes_cuda_only_where_a_rasteriser_works(
    options: dict[str, str], broken: tuple[str, ...], device: str, backend: str, said: str,
    found: dict[str, str | None], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found |= {name: f"no {name}" for name in broken}
    config = Config(**options)
    assert devices.device_of(config).type == device
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == bool(said)
    assert devices.rank_count(config) == (2 if device == "cuda" else 1)
    if device == "cuda":
        assert raster_ready.rasteriser(config.raster)[0] == backend
    heard: list[str] = []
    assert devices.device_of(config, say=heard.append).type == device and not capsys.readouterr().err
    assert [f"note: {line}\n" for line in heard] == ([err] if said else [])


def test_a_named_rasteriser_that_does_not_work_is_refused(found: dict[str, str | None]) -> None:
    found["gsplat"] = "gsplat has no nvcc"
    for call in (devices.device_of, devices.before_ranks):
        with pytest.raises(UserError, match="gsplat has no nvcc; or raster=cpu"):
            call(Config(raster="gsplat"))


def test_the_second_stage_draws_no_gaussians(found: dict[str, str | None]) -> None:
    found |= {"gsplat": "none", "inria": "none"}
    assert devices.device_of(Config(), splats=False).type == "cuda"
    assert devices.rank_count(Config(), splats=False) == 2


def test_only_a_run_that_draws_gaussians_asks_for_their_rasteriser(
    found: dict[str, str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    found |= {"gsplat": "none", "inria": "none"}
    coarse_to_fine = "[{scene: field, steps: 3}, {scene: tetrahedra}]"
    for config in (Config(scene="field"), Config(stages=coarse_to_fine, prompt="a car")):
        assert devices.device_of(config).type == "cuda"
        assert devices.rank_count(config) == 2
    devices.before_ranks(Config(scene="field", raster="gsplat"))
    assert not capsys.readouterr().err
    mixed = Config(stages="[{scene: field, steps: 3}, {scene: gaussians}]", prompt="a car")
    assert devices.device_of(mixed).type == "cpu"


def test_without_any_package_the_remedy_is_gsplats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_ready, "installed", lambda package: False)
    assert raster_ready.rasteriser("auto") == ("cpu", NEEDS)
    assert raster_ready.rasteriser("cpu") == ("cpu", None)


# --- Gaussians on a GPU, drawn by the CPU


def test_the_cpu_draws_cuda_tensors_through_the_host(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, str | None]
) -> None:
    """The bits of the CPU's own pictures and gradients, statistics too."""
    groups = [(VIEWS, (20, 24), BACKGROUND), (VIEWS[:1], 16, BACKGROUND[0])]
    seen: list[list[Tensor]] = []
    moved: list[str] = []
    inner = raster.through_host

    def through_host(*args: Any) -> Any:
        moved.append("host")
        return inner(*args)

    monkeypatch.setattr(raster, "through_host", through_host)
    for place, backend in (("cpu", "auto"), ("cuda", "cpu"), ("cuda", "auto")):
        monkeypatch.setattr(raster, "_place", lambda gaussians, place=place: place)
        found |= {"gsplat": "none", "inria": "none"}
        leaves = twin.ball(30, 1, 2).map(lambda x: x.detach().clone().requires_grad_())
        views = render_groups(leaves, groups, backend=backend)
        sum((view.image.square().sum() + view.depth.sum() for view in views), torch.zeros(())).backward()
        stats = gathered(leaves, *views)
        pictures = [x for view in views for x in (view.image, view.alpha, view.depth, view.radii_px)]
        seen.append([*pictures, *(x.grad for _, x in leaves.items()), stats.grad2d, stats.seen, stats.radii])
    assert moved == ["host", "host"]
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))
    assert float(seen[0][-3].max()) > 0


# --- gsplat without its compiled part


def package(folder: Path, backend: str) -> Path:
    """A gsplat whose cuda/_backend.py is this."""
    (folder / "gsplat" / "cuda").mkdir(parents=True)
    for part in (folder / "gsplat", folder / "gsplat" / "cuda"):
        (part / "__init__.py").write_text("")
    (folder / "gsplat" / "cuda" / "_backend.py").write_text(backend)
    return folder


@pytest.fixture
def gsplat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Writes one that is imported from here on."""

    def written(backend: str) -> Path:
        monkeypatch.syspath_prepend(package(tmp_path, backend))
        importlib.invalidate_caches()
        return tmp_path

    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "gsplat"}
    for name in before:
        del sys.modules[name]
    yield written
    for name in [name for name in sys.modules if name.split(".")[0] == "gsplat"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_gsplat_without_nvcc_is_one_line_with_the_remedy(gsplat: Callable[[str], Path]) -> None:
    gsplat("_C = None")
    said = raster_ready.trouble("gsplat")
    assert said == raster_cuda.NO_TOOLKIT and "nvcc" in said and "CUDA_HOME" in said and "\n" not in said
    with pytest.raises(UserError, match="nvcc"):
        raster_cuda._load("gsplat", "gsplat", torch.device("cuda"))
    with pytest.raises(UserError, match="needs CUDA tensors"):  # nothing is compiled for those
        render(twin.ball(4, 0, 0), VIEWS, 16, BACKGROUND, backend="gsplat")


def test_what_a_compiler_says_is_one_line(gsplat: Callable[[str], Path]) -> None:
    gsplat("raise RuntimeError(\"Error building extension 'gsplat_cuda'\\nninja: build stopped\\n\")")
    said = raster_ready.trouble("gsplat")
    assert said is not None and "\n" not in said
    assert "does not work here (Error building extension 'gsplat_cuda')" in said and "pip install" in said


def test_kernels_that_cannot_draw_are_no_rasteriser(
    gsplat: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gsplat("_C = object()")
    errors: list[Exception | None] = [RuntimeError("CUDA error: no kernel image is available"), None]

    def draw(backend: str) -> None:
        if (error := errors.pop(0)) is not None:
            raise error

    monkeypatch.setattr(raster_ready, "draw", draw)
    assert "no kernel image is available" in str(raster_ready.tried("gsplat"))
    raster_ready.tried.cache_clear()
    assert raster_ready.tried("gsplat") is None


def test_what_is_tried_is_a_picture_and_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stand-in; its tensors are the CPU's."""
    stand_in = SimpleNamespace(rasterization=gsplat_rasterization)
    cameras = type(VIEWS)
    monkeypatch.setattr(raster_cuda, "_load", lambda *args: stand_in)
    monkeypatch.setattr(raster_ready, "init_ball", lambda *args: init_ball(*args[:-1], "cpu"))
    monkeypatch.setattr(cameras, "to", lambda self, device: self)
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device=None, **more: ones(*size, **more))
    from gs_propeller.scenes.gaussians.state import init_ball

    raster_ready.draw("gsplat")
    broken = SimpleNamespace(rasterization=lambda **k: _spoilt(*gsplat_rasterization(**k)))
    monkeypatch.setattr(raster_cuda, "_load", lambda *args: broken)
    with pytest.raises(RuntimeError, match="not finite"):
        raster_ready.draw("gsplat")


def _spoilt(image: Tensor, *others: Any) -> tuple[Any, ...]:
    return image * float("nan"), *others


# --- once, before ranks start


def test_one_process_compiles_at_a_time(
    gsplat: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for the ranks: each opens the lock's file anew."""
    gsplat("")
    inside: list[int] = []
    most = [0]

    def has_kernels() -> bool:
        inside.append(1)
        most[0] = max(most[0], len(inside))
        time.sleep(0.05)
        inside.pop()
        return False

    monkeypatch.setattr(raster_ready, "has_kernels", has_kernels)
    monkeypatch.setattr(locks, "AGAIN_S", 0.01)
    said: list[str | None] = []
    ranks = [
        threading.Thread(target=lambda: said.append(raster_ready.tried.__wrapped__("gsplat")))
        for _ in range(4)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert said == [raster_cuda.NO_TOOLKIT] * 4 and most == [1]


def test_a_lock_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    with locks.locked(tmp_path / "x.lock"), pytest.raises(OSError), locks.locked(tmp_path / "x.lock", 0.01):
        pass
    with locks.locked(tmp_path / "x.lock"):
        pass


def test_ranks_are_told_what_the_launcher_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process of its own, once; then in the environment, where nothing is tried again."""
    commands: list[list[str]] = []
    output = ['building...\n{"gsplat": "no nvcc", "inria": null}\n']

    def ran(words: list[str], **options: Any) -> Any:
        commands.append(words)
        return SimpleNamespace(stdout=output[0], returncode=-11)

    monkeypatch.setattr(raster_ready, "tried", lambda backend: pytest.fail("tried by the launcher or a rank"))
    monkeypatch.setattr(subprocess, "run", ran)
    devices.before_ranks(Config(device="cpu"))
    devices.before_ranks(Config(raster="cpu"))
    devices.before_ranks(Config(), splats=False)
    assert not commands
    for _ in range(2):
        devices.before_ranks(Config())
    assert [words[-2:] for words in commands] == [["gsplat", "inria"]]
    assert json.loads(os.environ[raster_ready.FOUND]) == {"gsplat": "no nvcc", "inria": None}
    assert raster_ready.rasteriser("auto") == ("inria", None)
    monkeypatch.delenv(raster_ready.FOUND)
    output[0] = "Fatal Python error: Segmentation fault"
    raster_ready.try_apart("gsplat")
    assert "ends the process that draws with it (exit code -11)" in str(raster_ready.trouble("gsplat"))


@pytest.mark.slow
def test_the_process_that_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(package(tmp_path, "print('gsplat: no toolkit')\n_C = None")))
    raster_ready.try_apart("gsplat")
    assert json.loads(os.environ[raster_ready.FOUND]) == {"gsplat": raster_cuda.NO_TOOLKIT}


def test_everything_is_ready_when_ranks_start(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, str | None]
) -> None:
    order: list[str] = []
    monkeypatch.setattr(devices, "try_apart", lambda raster: order.append(f"tried {raster}"))

    def launch(words: Any, ranks: int, threads: int) -> int:
        order.append(f"{ranks} ranks")
        return 0

    monkeypatch.setattr(launcher, "launch", launch)
    words = ["--config", IMAGE, "input=data/cat.png", "raster=gsplat"]
    checked: Callable[[Config], None] = lambda config: order.append("checked and fetched")  # noqa: E731
    assert command.run("main.py", words, checked, lambda config: pytest.fail("one process")) == 0
    assert order == ["checked and fetched", "tried gsplat", "2 ranks"]


# --- a full GPU, wherever that is


def test_a_full_gpu_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a second one where there is a checkpoint to go on from."""

    def work(config: Config) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    words = ["--config", IMAGE, "input=data/cat.png", "device=cpu", f"outdir={tmp_path}"]
    assert command.run("main.py", words, lambda config: None, work) == 3
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "checkpoint.safetensors").touch()
    assert command.run("main.py", words, lambda config: None, work) == 3
    first, kept = capsys.readouterr().err.splitlines()
    assert "the GPU's memory is full" in first and "batch_size" in first and "checkpoint" in kept

    def broken(config: Config) -> int:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):  # with its traceback
        command.run("main.py", words, lambda config: None, broken)


# --- a mesh on a GPU


def nvdiffrast(upside_down: bool = False) -> Any:
    """nvdiffrast 0.4's rasterize, by rays in clip space: (u, v, z/w, 1 + triangle) of the nearest, row 0 at the bottom.

    That row is at y = -1 in normalised coordinates; our projection turns the picture by looking down y.
    """

    def rasterize(
        glctx: Any,
        pos: Tensor,
        tri: Tensor,
        resolution: tuple[int, int],
        ranges: Any = None,
        grad_db: bool = True,
    ) -> tuple[Tensor, None]:
        assert glctx == "context" and pos.is_contiguous() and pos.dtype == torch.float32
        assert tri.dtype == torch.int32 and pos.shape[2] == 4
        height, width = resolution
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height * 2 - 1,
            (torch.arange(width) + 0.5) / width * 2 - 1,
            indexing="ij",
        )
        out = torch.zeros(len(pos), height, width, 4)
        best = torch.full((len(pos), height, width), float("inf"))
        for v, points in enumerate(pos.double()):
            for f, corners in enumerate(points[tri.long()]):
                # homogeneous: solve for the weights that bring the corners to (x, y, 1) w
                matrix = corners[:, [0, 1, 3]].T
                if abs(float(torch.linalg.det(matrix))) < 1e-12:
                    continue
                weights = torch.linalg.solve(
                    matrix, torch.stack([x, y, torch.ones_like(x)]).double().reshape(3, -1)
                )
                weights = weights / weights.sum(0)
                depth = (corners[:, 2] @ weights) / (corners[:, 3] @ weights)
                inside = ((weights >= 0).all(0) & (corners[:, 3] @ weights > 0)).reshape(height, width)
                nearer = inside & (depth.reshape(height, width) < best[v])
                best[v][nearer] = depth.reshape(height, width)[nearer].float()
                parts = torch.stack([weights[0], weights[1], depth, torch.full_like(depth, f + 1.0)], 1)
                out[v][nearer] = parts.reshape(height, width, 4)[nearer].float()
        return (out.flip(1) if upside_down else out), None

    return SimpleNamespace(rasterize=rasterize, RasterizeCudaContext=lambda device: "context")


@pytest.fixture
def on_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    def put(module: Any) -> None:
        monkeypatch.setitem(sys.modules, "nvdiffrast", SimpleNamespace(torch=module))
        monkeypatch.setitem(sys.modules, "nvdiffrast.torch", module)
        monkeypatch.setattr(mesh_raster, "installed", lambda package: True)
        mesh_raster._context.cache_clear()

    yield put
    mesh_raster._context.cache_clear()


def test_nvdiffrast_is_asked_in_its_own_conventions(on_stand_in: Callable[[Any], None]) -> None:
    """Faces, barycentrics and depths are those of our rays."""
    on_stand_in(nvdiffrast())
    solid = trimesh.creation.icosphere(subdivisions=1, radius=0.5)
    mesh = Mesh(torch.tensor(solid.vertices, dtype=torch.float32), torch.tensor(solid.faces).long())
    ours, theirs = (
        mesh_raster.rasterize(mesh, VIEWS, (24, 32)),
        mesh_raster._rasterize_cuda(mesh, VIEWS, 24, 32),
    )
    same = ours.face_id == theirs.face_id
    assert float(same.float().mean()) > 0.995  # the rest lies on edges
    inside = same & ours.mask
    assert torch.allclose(ours.barycentric[inside], theirs.barycentric[inside], atol=1e-5)
    assert torch.allclose(ours.depth[inside], theirs.depth[inside], atol=1e-5)


def test_nvdiffrast_is_tried_before_it_is_taken(
    on_stand_in: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    assert "needs the package nvdiffrast: pip install" in str(mesh_raster.mesh_trouble(cpu))
    for module, said in ((nvdiffrast(), "None"), (nvdiffrast(upside_down=True), "otherwise than the CPU")):
        on_stand_in(module)
        mesh_raster.tried.cache_clear()
        assert said in str(mesh_raster.mesh_trouble(cpu))
