"""`tollkeeper serve` and `tollkeeper simulate`: the long-running commands."""

import asyncio
import os
import signal
import socket
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tollkeeper import __version__
from tollkeeper.cli.common import ConfigOption
from tollkeeper.cli.configuration import require_providers
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.observability.logging import configure
from tollkeeper.settings import Settings, check, duration_s, load


def serve(
    demo: Annotated[bool, typer.Option("--demo", help="With a simulated provider and a demo key.")] = False,
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: as configured.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default: as configured.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that share the port; default: as configured, or 1.", min=1)
    ] = None,
    as_worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the gateway until Ctrl-C or SIGTERM. With several workers SIGHUP replaces them, one by one."""
    settings = _with_options(load(config), host, port, workers)
    if not demo:
        require_providers(settings)
    if as_worker is not None:
        from tollkeeper.app.crew import read_place

        place, listeners, channel = read_place(as_worker)
        configure(settings.log_level, settings.log_format, worker=place)
        _run(_serve_as_worker(settings, place, listeners, channel))
        return
    # in the demo the terminal belongs to the examples: only what goes wrong is logged there
    configure("warning" if demo and settings.log_level == "info" else settings.log_level, settings.log_format)
    if settings.server.workers > 1:
        _refuse_workers(settings, demo)
        asyncio.run(_supervise(settings))
    else:
        _run(_demo(settings) if demo else _serve(settings))


def _with_options(settings: Settings, host: str | None, port: int | None, workers: int | None) -> Settings:
    server = msgspec.structs.replace(
        settings.server,
        host=settings.server.host if host is None else host,
        port=settings.server.port if port is None else port,
        workers=settings.server.workers if workers is None else workers,
    )
    settings = msgspec.structs.replace(settings, server=server)
    check(settings)
    return settings


def _refuse_workers(settings: Settings, demo: bool) -> None:
    """On the memory store there can be one process only, since its limits live in it. Raises ConfigurationError."""
    number = settings.server.workers
    if settings.embedded:
        raise ConfigurationError(
            f"{number} workers (--workers, WEB_CONCURRENCY), but without Redis the limits live in one process: ask "
            "for one, or set REDIS_URL or REDIS_ADDRESS"
        )
    if demo:
        raise ConfigurationError(
            f"{number} workers (--workers, WEB_CONCURRENCY), but the demo, with the provider in it, is one process: "
            "ask for one, or configure a provider"
        )


def _run(work: Coroutine[Any, Any, None]) -> None:
    import uvloop

    from tollkeeper.app.allocator import spare_memory

    spare_memory()
    uvloop.run(work)


async def _demo(settings: Settings) -> None:
    from tollkeeper.app.demo import CHUNK_DELAY_S, FIRST_BYTE_DELAY_S, demo_settings
    from tollkeeper.simulator import Simulator

    simulator = Simulator(
        host="127.0.0.1", port=0, first_byte_delay_s=FIRST_BYTE_DELAY_S, chunk_delay_s=CHUNK_DELAY_S
    )
    await simulator.start()
    try:
        await _serve(demo_settings(settings, simulator.port), demo=True)
    finally:
        await simulator.stop()


async def _serve(settings: Settings, *, demo: bool = False) -> None:
    from tollkeeper.app import server
    from tollkeeper.app.demo import demo_secret
    from tollkeeper.app.gateway import Gateway

    with server.bind(settings.server.host, settings.server.port) as bound, _bind_admin(settings) as admin:
        url = server.url_of(bound)
        admin_url = url if admin is None else server.url_of(admin)
        gateway = Gateway(settings)
        await gateway.start()
        try:
            secret = await demo_secret(gateway.accounts) if demo else None
            gateway.data_dir.write_address(admin_url)
            await server.run(
                gateway if admin is None else gateway.public,
                bound,
                settings.server,
                lambda: _greet(settings, url, admin_url, secret),
                _say_stopping,
                also=() if admin is None else ((gateway.control, admin),),
            )
            typer.echo("settling, writing spend to the database, shipping logs")
        finally:
            gateway.data_dir.remove_address(admin_url)
            await gateway.stop()
        typer.echo("stopped cleanly")


@contextmanager
def _bind_admin(settings: Settings) -> Iterator[socket.socket | None]:
    """The socket of the control plane's own listener, if it has one. Raises ConfigurationError."""
    from tollkeeper.app import server

    if settings.admin.port is None:
        yield None
        return
    with server.bind(settings.admin.host, settings.admin.port, "admin") as bound:
        yield bound


async def _supervise(settings: Settings) -> None:
    from tollkeeper.app import server
    from tollkeeper.app.data_dir import DataDir
    from tollkeeper.app.supervisor import Supervisor, own_command, stop_limit_s

    with server.bind(settings.server.host, settings.server.port) as listening, _bind_admin(settings) as admin:
        server.listen(listening)
        url, data_dir = server.url_of(listening), DataDir(settings.data_dir)
        admin_url = url
        if admin is not None:
            server.listen(admin)
            admin_url = server.url_of(admin)

        def greet() -> None:
            data_dir.write_address(admin_url)
            _greet(settings, url, admin_url, None)
            typer.echo(f"  workers   {settings.server.workers}")

        supervisor = Supervisor(
            wanted=settings.server.workers,
            listening=(listening,) if admin is None else (listening, admin),
            command=own_command(),
            drain_s=stop_limit_s(settings.server.drain_timeout_s, settings.logs.timeout_s),
            on_serving=greet,
            on_stopping=_say_stopping,
        )
        try:
            started = await supervisor.run()
        finally:
            data_dir.remove_address(admin_url)
    if not started:
        raise typer.Exit(1)  # the worker has said why
    typer.echo("stopped cleanly")


async def _serve_as_worker(settings: Settings, place: int, listeners: Sequence[int], channel: int) -> None:
    from tollkeeper.app import server
    from tollkeeper.app.crew import Crew
    from tollkeeper.app.gateway import Gateway
    from tollkeeper.app.supervisor import inherited

    with ExitStack() as sockets:
        listening, *admin = (sockets.enter_context(inherited(listener)) for listener in listeners)
        crew = await Crew.join(place, channel)
        gateway = Gateway(settings, crew)
        await gateway.start()
        announcing: list[asyncio.Task[None]] = []
        try:
            await server.run(
                gateway.public if admin else gateway,
                listening,
                settings.server,
                lambda: announcing.append(asyncio.create_task(crew.ready())),
                also=[(gateway.control, sock) for sock in admin],
            )
        finally:
            await gateway.stop()
            await crew.leave()


def _greet(settings: Settings, url: str, admin_url: str, demo_secret: str | None) -> None:
    from tollkeeper.app.demo import KEY_NAME, POLICY_TEXT, examples
    from tollkeeper.app.systemd import notify

    notify("READY=1")

    typer.echo(f"Tollkeeper {__version__} listens on {url}")
    if admin_url != url:
        typer.echo(f"  admin     {admin_url}")
    typer.echo(f"  API docs  {admin_url}/docs")
    typer.echo(f"  metrics   {url}/metrics")
    typer.echo(f"  health    {url}/readyz")
    typer.echo(f"  data      {settings.data_dir.absolute()}")
    if demo_secret is not None:
        typer.echo(
            f"\nThe provider is simulated: answers are made up, prices are real. The key `{KEY_NAME}` may make"
        )
        typer.echo(f"{POLICY_TEXT}; it gets a new secret at every start:\n\n  {demo_secret}")
        for title, command in examples(url, demo_secret):
            typer.echo(f"\n{title}:\n\n  {command}")
        typer.echo("\nThen: tollkeeper usage. Ctrl-C stops.")


def _say_stopping() -> None:
    from tollkeeper.app.systemd import notify

    notify("STOPPING=1")
    typer.echo("\nstopping: requests in flight are answered first; a second signal cuts them off")


def simulate(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8081,
    first_byte_delay: Annotated[str, typer.Option(help="Time until the answer begins, like 300ms.")] = "0s",
    chunk_delay: Annotated[str, typer.Option(help="Time between two chunks of a stream.")] = "0s",
    journal: Annotated[
        Path | None, typer.Option(help="Write what was served to this file, a JSON line a request.", dir_okay=False)
    ] = None,
) -> None:
    """Run the simulated provider alone, for tests and benchmarks, until Ctrl-C or SIGTERM."""
    try:
        first_byte_delay_s, chunk_delay_s = duration_s(first_byte_delay), duration_s(chunk_delay)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from None
    _run(_simulate(host, port, first_byte_delay_s, chunk_delay_s, journal))


async def _simulate(
    host: str, port: int, first_byte_delay_s: float, chunk_delay_s: float, journal: Path | None
) -> None:
    from tollkeeper.simulator import Simulator

    simulator = Simulator(
        host=host, port=port, first_byte_delay_s=first_byte_delay_s, chunk_delay_s=chunk_delay_s, journal=journal
    )
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        await simulator.start()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {reason}; choose another with --host and --port"
        ) from None
    try:
        typer.echo(f"the simulated provider listens on http://{host}:{simulator.port}/v1")
        await stopping.wait()
    finally:
        await simulator.stop()
    typer.echo("stopped cleanly")
