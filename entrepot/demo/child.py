"""A process of the demo: `python -m entrepot.demo.child PARENT serve …` is `entrepot serve …` that outlives no parent.

However the demo ends, even killed, nothing is left running (on Linux).
"""

from __future__ import annotations

import ctypes
import os
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

    _end_with_parent(int(sys.argv[1]))
    main(sys.argv[2:], prog_name="entrepot")
