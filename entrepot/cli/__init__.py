"""The `entrepot` command. One module for each command; here only their names.

Exit codes: 0 done, 1 failed, 2 usage (flags or configuration), 3 done in part or something found to be wrong.
"""

from __future__ import annotations

from entrepot.cli.lazy import LazyGroup

main = LazyGroup(
    "entrepot",
    {
        "serve": "entrepot.cli.serve:serve",
        "pull": "entrepot.cli.pull:pull",
        "refresh": "entrepot.cli.refresh:refresh",
        "status": "entrepot.cli.status:status",
        "ls": "entrepot.cli.ls:ls",
        "inspect": "entrepot.cli.inspect:inspect",
        "why": "entrepot.cli.why:why",
        "pin": "entrepot.cli.pin:pin",
        "unpin": "entrepot.cli.pin:unpin",
        "rm": "entrepot.cli.rm:rm",
        "gc": "entrepot.cli.gc:gc",
        "verify": "entrepot.cli.verify:verify",
        "backup": "entrepot.cli.backup:backup",
        "sync": "entrepot.cli.sync:sync",
        "export": "entrepot.cli.export:export",
        "import": "entrepot.cli.import_:import_",
        "bundle": "entrepot.cli.bundle:bundle",
        "inventory": "entrepot.cli.inventory:inventory",
        "key": "entrepot.cli.key:key",
        "client": "entrepot.cli.client:client",
        "doctor": "entrepot.cli.doctor:doctor",
        "config": "entrepot.cli.config:config",
        "demo": "entrepot.cli.demo:demo",
        "version": "entrepot.cli.version:version",
    },
    help="An OCI registry mirror: pulls through, keeps what it pulled, serves it again.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
