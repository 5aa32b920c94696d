"""`python -m bench.uncounted`: Entrepot that counts, or whose events reach the log and nobody else, turn about.

SIGUSR1 ends the counting, SIGUSR2 begins it again: what it costs is seen in one and the same process, since two of the
same program differ by several percent of each other.
"""

from __future__ import annotations

import signal

from entrepot import serve
from entrepot.cli import main
from metrics.emit import emitting
from metrics.events import Emit, Event, RequestFinished
from metrics.logs import Logs
from metrics.prometheus import Metrics
from metrics.pulls.gathering import Gathering


def switched(metrics: Metrics, logs: Logs, gathering: Gathering | None = None) -> Emit:
    """Return what `metrics.emit.emitting` does, to be switched off and on."""
    counted = emitting(metrics, logs, gathering)

    def uncounted(event: Event) -> None:
        if type(event) is RequestFinished:
            logs.log_request(event)

    now = [counted]
    signal.signal(signal.SIGUSR1, lambda *_: now.__setitem__(0, uncounted))
    signal.signal(signal.SIGUSR2, lambda *_: now.__setitem__(0, counted))
    return lambda event: now[0](event)


if __name__ == "__main__":
    vars(serve)["emitting"] = switched
    main()
