"""Ports that are free, and what two ranks of this machine find in their environment."""

import socket


def free_port() -> int:
    """Free a moment ago, which is as much as anyone can say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def world_of_two() -> dict[str, str]:
    """The variables that torchrun sets for both of two ranks; each has its own RANK and LOCAL_RANK beside them."""
    return {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
