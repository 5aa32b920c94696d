"""`entrepot verify`: have the running mirror hash its store again, or do it ourselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from entrepot.cli.exits import DONE, FAILED, IN_PART, CommandFailed
from entrepot.cli.options import command
from entrepot.cli.output import Output, format_size
from entrepot.cli.progress import meter
from entrepot.cli.running import RunningMirror, find
from entrepot.config import Config

if TYPE_CHECKING:
    from entrepot.verifying import Verified, VerifyError, VerifyResult


@click.command(short_help="Hash every stored blob again and set aside what is wrong.")
@command("data")
def verify(config: Config, output: Output) -> int:
    """Hash every stored blob again and set aside what is wrong.

    Exit code 3 when something was. What is set aside lies in DATA/quarantine and is pulled again when it is asked for.
    """
    running = find(config.data)
    if running is None and not (config.data / "blobs").is_dir():
        raise CommandFailed(f"there is no store in {config.data}; name the mirror's folder with --data")
    with meter(output, f"verifying {config.data}") as shown:

        def follow(at: Verified) -> None:
            shown.at(at.checked, at.total, f"{at.checked} of {at.total} blobs, {format_size(at.bytes)}")

        outcome = _by_mirror(running, follow) if running is not None else asyncio.run(_in_process(config, follow))
    return _tell(output, outcome)


def _by_mirror(mirror: RunningMirror, follow: Callable[[Verified], None]) -> VerifyResult | VerifyError:
    import msgspec

    from entrepot.verifying import Verified, VerifyLine

    decoder: msgspec.json.Decoder[VerifyLine] = msgspec.json.Decoder(VerifyLine)
    for line in mirror.lines("/api/verify", {}):
        event = decoder.decode(line)
        if not isinstance(event, Verified):
            return event
        follow(event)
    raise CommandFailed("the running mirror ended the verification before it was done; see its log, then verify again")


async def _in_process(config: Config, follow: Callable[[Verified], None]) -> VerifyResult:
    from entrepot.verifying import verify as verify_store
    from proxy.store.store import Store

    store = await Store.open(config.data, region=config.region)
    try:
        return await verify_store(store, follow)
    finally:
        await store.close()


def _tell(output: Output, outcome: VerifyResult | VerifyError) -> int:
    from entrepot.verifying import VerifyError

    if isinstance(outcome, VerifyError):
        output.failed(outcome.message)
        return FAILED
    adopted = {digest.partition(":")[2] for digest in outcome.adopted}
    wrong = [f"corrupt, set aside: {digest}" for digest in outcome.corrupt]
    wrong += [f"missing, to be pulled again: {digest}" for digest in outcome.missing]
    unknown = [f"unknown, set aside: {name}" for name in outcome.unknown if Path(name).name not in adopted]
    lines = [f"{outcome.checked} blobs checked, {format_size(outcome.bytes)}, {len(wrong) + len(unknown)} wrong"]
    if adopted:
        lines.append(f"{len(adopted)} whole blobs that the catalog did not know were adopted")
    output.result(outcome, "\n".join([*lines, *wrong, *unknown]))
    return IN_PART if wrong or unknown else DONE
