"""`make run` on a Python that the pinned packages have no wheels for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not shutil.which("make"), reason="make is missing")
@pytest.mark.parametrize(
    ("version", "fits"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)]
)
def test_other_pythons_are_refused_before_anything_is_set_up(
    version: tuple[int, int], fits: bool, tmp_path: Path
) -> None:
    """The interpreter is this one, which says that it is another; -m venv ends it, so nothing is installed."""
    fake = tmp_path / "python"
    told = f"import sys; sys.version_info = {(*version, 0)}; exec(sys.argv[1])"
    fake.write_text(
        f'#!/bin/sh\ntest "$1" = -c || {{ echo set up; exit 9; }}\nexec {sys.executable} -c \'{told}\' "$2"\n'
    )
    fake.chmod(0o755)
    command = ["make", "setup", f"PYTHON={fake}", f"VENV={tmp_path / 'none'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode
    assert ("set up" in done.stdout) == fits
    said = f"Python 3.11 to 3.13 is needed, this is {version[0]}.{version[1]}: make run PYTHON=python3.12"
    assert (said in done.stderr) == (not fits)
