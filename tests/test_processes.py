"""Processes that work for another one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

POOL = """
import os, time
from gs_propeller.base.processes import pool_of

def work(_):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    pool = pool_of(1)
    pool.submit(work, 0).result()
"""


def works(pid: int) -> bool:
    """Whether the process is there, and no zombie that nobody has asked after."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_the_workers_of_a_killed_pool_end_too(tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as pool:
        assert pool.stdout is not None
        worker = int(pool.stdout.readline())
        assert works(worker)
        pool.kill()
    for _ in range(300):  # half a minute at most; it takes milliseconds
        if not works(worker):
            return
        time.sleep(0.1)
    os.kill(worker, 9)
    pytest.fail("the worker works on")
