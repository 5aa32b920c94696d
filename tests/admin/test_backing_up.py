"""A backup that a command asks for, and whose asker goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from entrepot.asking import BackUp, Copied, Surroundings, answers
from entrepot.mirror import Mirror
from proxy.store.backup import Backup, BackupProgress


async def test_a_backup_ends_with_its_asker_though_nobody_takes_its_news(
    running: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = asyncio.Event()

    async def never_done(target: Path | None, report: Callable[[BackupProgress], None]) -> Backup:
        report(BackupProgress(1, 3))
        await asyncio.sleep(0)
        report(BackupProgress(2, 3))
        told.set()
        never: asyncio.Future[Backup] = asyncio.get_running_loop().create_future()
        return await never

    monkeypatch.setattr(running.store, "back_up", never_done)
    async with asyncio.timeout(30):
        async with aclosing(answers(BackUp(), Surroundings(running.store, running.config))) as pages:
            assert list(await anext(pages)) == [Copied(1, 3)]
            await told.wait()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "catalog backup for a command"]
