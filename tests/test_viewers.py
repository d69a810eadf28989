"""What other programs make of the written files: the Khronos validator, and three.js in a real browser.

Both come with `npm ci --prefix tests/web` and Debian's chromium, which `make test` installs where it can.
"""

from __future__ import annotations

import functools
import json
import math
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

WEB = Path(__file__).parent / "web"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
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
