"""One thread a process and no network, set before torch is imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # bits are compared with ==, and a busy machine must not stall the suite
