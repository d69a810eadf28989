"""What other programs make of the written files: the Khronos validator, and three.js in a real browser.

Both come with `npm ci --prefix tests/web` and Debian's chromium, which `make test` installs where it can.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from gs_propeller.base.camera import orbit
from gs_propeller.mesh.io import save_glb
from gs_propeller.mesh.surface import from_trimesh
from gs_propeller.mesh.texture import Textured, shade, unwrap
from gs_propeller.scenes.gaussians.compressed import save_compressed
from gs_propeller.scenes.gaussians.ply import save_ply
from gs_propeller.scenes.gaussians.state import Gaussians
from tests import raster_twin

WEB = Path(__file__).parent / "web"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
SPLATS = shutil.which(
    "splat-transform", path=f"{WEB}/node_modules/.bin{os.pathsep}{os.environ.get('PATH', '')}"
)
installed = (WEB / "node_modules").is_dir()
needs_node = pytest.mark.skipif(not (NODE and installed), reason="node or tests/web/node_modules is missing")
needs_browser = pytest.mark.skipif(
    not (BROWSER and installed), reason="chromium or tests/web/node_modules is missing"
)


@pytest.fixture(scope="module")
def textured() -> Textured:
    """Something without symmetry: a ring beside a block, each texel coloured by its place in the atlas."""
    ring = trimesh.creation.torus(0.35, 0.12).apply_translation([0.1, 0.0, 0.2])
    block = trimesh.creation.box([0.2, 0.7, 0.3]).apply_translation([-0.45, 0.1, -0.1])
    mesh = from_trimesh(trimesh.util.concatenate([ring, block]))
    line = torch.linspace(0, 1, 128)
    texture = torch.stack([*torch.meshgrid(line, line, indexing="ij"), torch.full((128, 128), 0.3)], 2)
    return Textured(mesh, *unwrap(mesh, 128), texture)


@needs_node
def test_the_validator_finds_nothing_wrong(textured: Textured, tmp_path: Path) -> None:
    save_glb(tmp_path / "thing.glb", textured)
    done = subprocess.run(
        [str(NODE), "validate.mjs", str(tmp_path / "thing.glb")], cwd=WEB, capture_output=True, timeout=60
    )
    issues = json.loads(done.stdout)
    assert issues["numErrors"] == 0, issues["messages"]
    assert issues["numWarnings"] == 0, issues["messages"]


@pytest.mark.skipif(not SPLATS, reason="@playcanvas/splat-transform is not installed")
@pytest.mark.parametrize("kind", ["ply", "spz", "sog"])
def test_a_splat_viewer_stands_it_up(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PlayCanvas turns a .ply of 3DGS for its own world, where y is up: that must be ours, as the .glb shows it."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (5, 3), (5, 4), (5,), (5, 1, 3), (5, 3, 3)]
    scene = Gaussians(*(torch.randn(shape, generator=generator) for shape in shapes))
    monkeypatch.setenv("PATH", f"{Path(str(SPLATS)).parent}{os.pathsep}{os.environ['PATH']}")
    (save_ply if kind == "ply" else save_compressed)(tmp_path / f"a.{kind}", scene)
    command = [str(SPLATS), "-w", f"a.{kind}", "a.glb"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    data = (tmp_path / "a.glb").read_bytes()
    size = int.from_bytes(data[12:16], "little")
    head, body = json.loads(data[20 : 20 + size]), data[28 + size :]
    attributes = head["meshes"][0]["primitives"][0]["attributes"]

    def values(name: str, columns: int) -> np.ndarray:
        accessor = head["accessors"][attributes[name]]
        begin = head["bufferViews"][accessor["bufferView"]].get("byteOffset", 0) + accessor.get(
            "byteOffset", 0
        )
        return np.frombuffer(body, "<f4", 5 * columns, begin).reshape(5, columns)

    found = values("POSITION", 3)
    order = np.abs(found[:, None] - scene.means.numpy()[None]).sum(2).argmin(1)
    assert np.allclose(found, scene.means.numpy()[order], atol=1e-5 if kind == "ply" else 0.01)
    if kind != "ply":  # the rest is rounded as these formats like
        return
    axes = raster_twin.rotations(
        torch.from_numpy(values("KHR_gaussian_splatting:ROTATION", 4)[:, [3, 0, 1, 2]].copy())
    )
    assert torch.allclose(axes, raster_twin.rotations(scene.quats)[order], atol=1e-4)
    for k in range(3):
        told = values(f"KHR_gaussian_splatting:SH_DEGREE_1_COEF_{k}", 3)
        assert np.allclose(told, scene.sh_rest[order, k].numpy(), atol=1e-4)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's files at an address of this machine's own."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def screenshot(address: str, image: Path, size: int, profile: Path) -> np.ndarray:
    """[S, S, 3] in 0..1 of the page in a window of S x S, once its script has settled."""
    subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
            "--hide-scrollbars", f"--window-size={size},{size}", f"--user-data-dir={profile}",
            "--virtual-time-budget=20000", f"--screenshot={image}", address,
        ],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    return np.asarray(Image.open(image).convert("RGB"), dtype=np.float32) / 255


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_what_we_draw(textured: Textured, tmp_path: Path) -> None:
    """Same camera, no light: geometry, orientation, colour space and texture coordinates all show."""
    size, azimuth, elevation = 256, 0.6, 0.35
    site = tmp_path / "site"
    site.mkdir()
    (site / "node_modules").symlink_to(WEB / "node_modules")
    shutil.copy(WEB / "view.html", site)
    save_glb(site / "thing.glb", textured)
    query = f"file=thing.glb&size={size}&azimuth={azimuth}&elevation={elevation}&radius=2&fov=49.1"
    with served(site) as address:
        seen = screenshot(f"{address}/view.html?{query}", tmp_path / "shot.png", size, tmp_path / "profile")
    ours = shade(textured, orbit([azimuth], [elevation], 2.0, math.radians(49.1)), size, 4)[0][0]
    error = float(np.square(seen - ours.permute(1, 2, 0).numpy()).mean())
    psnr_db = -10 * math.log10(error)
    assert float((ours < 0.95).any(0).float().mean()) > 0.1  # there is something to see
    assert psnr_db > 36, psnr_db  # measured 42.8: edges alone differ
