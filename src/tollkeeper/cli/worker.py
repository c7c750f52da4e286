"""`tollkeeper worker`: what gateways leave to be done, as a process of its own."""

from typing import Annotated

import msgspec
import typer

from tollkeeper.cli.common import ConfigOption, now_us
from tollkeeper.observability.logging import configure
from tollkeeper.settings import check, load


def worker(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address for /metrics and probes; default: as configured.")] = None,
    port: Annotated[int | None, typer.Option(help="Port for them; default: as configured, or none.")] = None,
) -> None:
    """Ship the log records that gateways bring to Redis, until Ctrl-C or SIGTERM. As many at once as you like."""
    import uvloop

    from tollkeeper.app.allocator import spare_memory
    from tollkeeper.app.log_worker import run_worker

    settings = load(config)
    listener = msgspec.structs.replace(
        settings.worker,
        host=settings.worker.host if host is None else host,
        port=settings.worker.port if port is None else port,
    )
    settings = msgspec.structs.replace(settings, worker=listener)
    check(settings)
    configure(settings.log_level, settings.log_format)
    spare_memory()
    uvloop.run(run_worker(settings, now_us))
