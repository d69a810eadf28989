"""The page: a picture or a sentence in, the optimisation live, a textured 3D asset out, in a browser.

    python gradio_app.py                      # http://127.0.0.1:7860, this machine alone
    python gradio_app.py host=0.0.0.0 port=8000 outdir=runs/page prior=pocket

A door: arguments here, the page in gs_propeller/studio/page.py. What is no host or port is an option of the runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C; returns the exit code: 2 for bad arguments, and where gradio is missing."""
    from gs_propeller.base.errors import UserError
    from gs_propeller.places import checkout, install

    try:
        try:
            from gs_propeller.studio.page import serve
        except ModuleNotFoundError as error:
            raise UserError(
                f"the page needs {error.name}: {'make app' if checkout() else install('app')}"
            ) from error
        serve(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
