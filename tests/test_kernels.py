"""Compiled kernels find a place where neither the checkout nor the home folder can be written to."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gs_propeller.base import kernels

ROOT = Path(__file__).parent.parent


def _without_rights() -> list[str]:
    """What to put before a command so that read-only files are so for it: root may write to them otherwise."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root without setpriv cannot be kept from writing")
    return ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package that nobody can write to."""
    copy = tmp_path / "checkout"
    for name in ("gs_propeller", "guidance"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*copy.rglob("*"), copy):
        path.chmod(path.stat().st_mode & ~0o222)
    yield copy
    for path in (copy, *copy.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


@pytest.mark.slow
def test_a_read_only_checkout_and_no_home(checkout: Path, tmp_path: Path) -> None:
    program = (
        "import gs_propeller.scenes.gaussians.raster.cpu, gs_propeller.mesh.surface, numba; print('fine')"
    )
    (tmp_path / "tmp").mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    environment |= {"HOME": "/proc/nowhere", "TMPDIR": str(tmp_path / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*_without_rights(), sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=checkout, env=environment)
    assert done.stdout == "fine\n", done.stderr
    (line,) = done.stderr.splitlines()
    (place,) = (tmp_path / "tmp").glob("propeller-kernels-*")
    assert line.startswith("note: neither") and line.endswith(str(place))
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_folder_that_others_may_write_to_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(kernels.tempfile, "tempdir", str(tmp_path))
    usual = tmp_path / f"propeller-kernels-{os.getuid()}"
    assert kernels.own_folder() == kernels.own_folder() == usual
    usual.chmod(0o777)
    other = kernels.own_folder()
    assert other != usual and stat.S_IMODE(other.stat().st_mode) == 0o700
    shutil.rmtree(usual)
    usual.symlink_to(other)
    assert kernels.own_folder() not in (usual, other)


def test_nothing_is_said_where_there_is_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    kernels.find_place()
    assert capsys.readouterr().err == ""
