"""torchrun for real: two node agents on this machine, and a killed rank that it replaces by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_propeller
from gs_propeller.base.files import load_tensors
from gs_propeller.scenes.gaussians.state import State
from tests import tiny_prior
from tests.ports import free_port
from tests.test_main import IMAGE, ROOT, SMALL

WORDS = [
    *SMALL,
    "elevation=auto",  # found out once, and kept by whoever goes on
    "steps=40",
    "updates_per_evaluation=3",
    "densify_until=30",
    "threshold=0",
    "ema=1",
    "checkpoint_every_s=0",
]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("torchrun")
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[10:54, 20:50] = 255
    rgba[10:54, 20:50, :3] = np.random.default_rng(0).integers(0, 255, (44, 30, 3))
    Image.fromarray(rgba).save(folder / "thing.png")
    prior = tiny_prior.write(folder / "prior")
    return ["--config", IMAGE, f"prior={prior}", f"input={folder / 'thing.png'}", *WORDS]


@pytest.fixture(scope="module")
def expected(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> State:
    outdir = tmp_path_factory.mktemp("serial")
    assert main_propeller.main([*words, f"outdir={outdir}"]) == 0
    return last_state(outdir)


def last_state(outdir: Path) -> State:
    tensors, meta = load_tensors(outdir / "thing" / "checkpoint.safetensors")
    assert meta["start"] == 14  # the last evaluation serves one update
    return State.from_tensors({key[2:]: value for key, value in tensors.items() if key.startswith("0/")})


def same(one: State, other: State) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def torchrun(options: list[str], words: list[str]) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *options,
        str(ROOT / "main_propeller.py"),
        *words,
    ]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finished(process: subprocess.Popen[str]) -> str:
    try:
        said = process.communicate(timeout=180)[1]
    finally:
        process.kill()
    assert process.returncode == 0, said[-3000:]
    return said


def rank_pid(launchers: list[subprocess.Popen[str]], rank: int) -> int:
    """Process id of the launchers' rank; 0 where there is none."""
    parents = [str(process.pid) for process in launchers]
    for folder in Path("/proc").iterdir():
        try:
            parent = folder.name.isdigit() and (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            if parent in parents and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(
                b"\0"
            ):
                return int(folder.name)
        except OSError:
            continue  # it ended while we looked
    return 0


def kill_in_the_middle(launchers: list[subprocess.Popen[str]], rank: int, outdir: Path) -> None:
    until = time.monotonic() + 120
    checkpoint = outdir / "thing" / "checkpoint.safetensors"
    while not checkpoint.exists() and launchers[0].poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(rank_pid(launchers, rank), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks in /proc")
def test_two_nodes_replace_a_killed_rank(words: list[str], expected: State, tmp_path: Path) -> None:
    shared = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d", "--rdzv-id=7"]
    shared.append(f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    nodes = [torchrun(shared, [*words, f"outdir={tmp_path}", "window=2"]) for _ in range(2)]
    kill_in_the_middle(nodes, 1, tmp_path)
    for node in nodes:
        finished(node)
    assert same(expected, last_state(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks in /proc")
def test_a_killed_rank_is_named(words: list[str], tmp_path: Path) -> None:
    """Rank 1; the launcher names the other as well in tests/test_ranks.py."""
    command = [sys.executable, str(ROOT / "main_propeller.py"), *words, f"outdir={tmp_path}", "ranks=2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    kill_in_the_middle([process], 1, tmp_path)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 3
    assert "rank 1 of 2 died: killed (signal 9)" in said
    assert f"the last checkpoint is kept in {tmp_path / 'thing'}" in said
    assert "Traceback" not in said
