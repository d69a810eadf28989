"""Where what ships with the program lies, its configurations and priors: in a checkout beside the package, in an
installed one inside it. Imports nothing of ours."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped(name: str = "") -> Path:
    """The path of configs/image.yaml, data/zero123-pocket and the like; "" is the folder that holds both."""
    inside = PACKAGE / "shipped"  # a wheel has it, see pyproject.toml; a checkout does not
    return (inside if inside.is_dir() else PACKAGE.parent) / name


def checkout() -> bool:
    """Whether this is the tree itself, not an installed package."""
    return shipped() == PACKAGE.parent


def install(extra: str = "") -> str:
    """The command that installs the program, with that extra of pyproject.toml."""
    what = str(PACKAGE.parent) if checkout() else "gs-propeller"
    return f"pip install '{what}[{extra}]'" if extra else f"pip install '{what}'"


def rembg_weights() -> Path:
    """Where rembg keeps its model, which its first use downloads."""
    home = os.environ.get("U2NET_HOME", os.path.join(os.path.expanduser("~"), ".u2net"))
    return Path(home) / "u2net.onnx"
