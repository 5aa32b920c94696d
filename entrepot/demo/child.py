"""A process of the demo: `python -m entrepot.demo.child PARENT FOLDER serve …` is `entrepot serve …` that outlives no
parent.

However the demo ends, even killed, nothing is left running (on Linux), and FOLDER, where it is not empty, is removed by
whoever is given it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _end_with_parent(parent: int) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before this was heard
        sys.exit(0)


if __name__ == "__main__":
    from entrepot.cli import main

    parent, folder, words = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    try:
        _end_with_parent(parent)
        main(words, prog_name="entrepot")
    finally:
        if folder and os.getppid() != parent:
            shutil.rmtree(folder, ignore_errors=True)
