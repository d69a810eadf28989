"""Files that appear under their names only when they are whole: anything, and tensors with metadata.

A file that cannot be written raises UserError with its path, and what stood there stays.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gs_propeller.base.errors import UserError, unwritten


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Write to the path this yields; it takes the final name at the end, if nothing was raised. Raises UserError."""
    final = Path(path)
    temporary: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{final.stem}.", suffix=final.suffix, dir=final.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("r+b") as file:  # Windows refuses to flush what is open for reading alone
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's own mode would keep others from reading it
        temporary.replace(final)
    except (OSError, SafetensorError) as error:
        raise unwritten(final, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def save_tensors(path: str | Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Tensors and JSON metadata in one safetensors file: whole or not at all."""
    # Copies: states of one window share what did not change, and the format wants each name its own memory.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(plain, temporary, {"json": json.dumps(meta)})


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of save_tensors. Raises UserError for a file that is not one."""
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["json"])  # noqa: SIM118 - not a dict


def load_meta(path: str | Path) -> dict[str, Any]:
    """The metadata alone of what save_tensors wrote. Raises UserError."""
    with _opened(path) as file:
        return dict(json.loads(file.metadata()["json"]))


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, RuntimeError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); take it away, or, of the run itself, start anew with resume=false"
        ) from error
