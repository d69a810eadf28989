"""What mkdocs cannot do by itself: pages that stand elsewhere in the tree (README.md is the first one) join the site,
and links are those of the tree, so that one text serves both."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
JOIN = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "bench/RESULTS.md", "data/README.md", "examples/*.py",
    "blender/*.py", "requirements*.txt",
)  # fmt: skip
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")


def in_site(path: str) -> str:
    """A path of the tree as the site has it."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def in_tree(path: str) -> str:
    joined = {in_site(p): p for p in _joining()}
    return joined.get(path, f"docs/{path}")


def _joining() -> list[str]:
    return [path.relative_to(ROOT).as_posix() for pattern in JOIN for path in sorted(ROOT.glob(pattern))]


def on_files(files: Files, config: Any) -> Files:
    for path in _joining():
        files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = in_tree(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[2]))
        return match[1] + posixpath.relpath(in_site(target), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)
