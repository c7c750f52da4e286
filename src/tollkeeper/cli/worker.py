"""`tollkeeper worker`: what gateways leave to be done, as a process of its own."""

from tollkeeper.cli.common import ConfigOption, now_us
from tollkeeper.observability.logging import configure
from tollkeeper.settings import load


def worker(config: ConfigOption = None) -> None:
    """Ship the log records that gateways bring to Redis, until Ctrl-C or SIGTERM. As many at once as you like."""
    import uvloop

    from tollkeeper.app.log_queue import run_worker

    settings = load(config)
    configure(settings.log_level, settings.log_format)
    uvloop.run(run_worker(settings, now_us))
