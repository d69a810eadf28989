"""One thread a process and no network: bits are compared with ==, and a busy machine must not stall the suite."""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_HUB_CACHE"] = os.devnull  # prior=auto is the pocket prior, whatever this machine has
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; processes that tests start inherit it

import pytest
import torch

from gs_propeller.scenes.gaussians.raster.cpu import set_threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A run of the program takes all the cores it is given; the next test begins with one again."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
    set_threads(None)
