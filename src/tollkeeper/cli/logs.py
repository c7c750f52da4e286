"""`tollkeeper logs`: what is in the log store, questions to it, and the proof that it is whole."""

import asyncio
import csv
import re
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from tollkeeper.cli.common import ConfigOption, JsonOption, note, now_us, print_facts, print_json, print_table, run
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.log_account import NumberRange, ProducerReport, VerifyReport, count
from tollkeeper.domain.log_search import PAGE_MAX, LogFilters
from tollkeeper.domain.money import usd
from tollkeeper.domain.periods import US_PER_S
from tollkeeper.domain.words import instant, proof_words, time_us_from
from tollkeeper.logs.query import TIMEOUT_S, Interval, query
from tollkeeper.logs.search import follow, search
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.logs.stats import named, summary
from tollkeeper.settings import duration_s, load

app = typer.Typer(help="Request logs in the log store: stats, tail, query, verify.", no_args_is_help=True)

RANGES_SHOWN: Final = 20
"""Of one producer and kind; `--json` has all."""
CALLS_MAX: Final = 32
"""Calls of the store in flight."""
_AGE: Final = re.compile(r"(\d{1,5})([smhdw])")
_AGE_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def _moment(text: str) -> int:
    """An age or a moment → Unix µs."""
    age = _AGE.fullmatch(text)
    try:
        return now_us() - int(age[1]) * _AGE_S[age[2]] * US_PER_S if age else time_us_from(text, what="time")
    except InvalidInput as error:
        raise typer.BadParameter(f'{error}, or an age like "15m", "2h" or "7d"') from None


WHEN: Final = "15m, 2h, 7d, 2026-11-23 or 2026-11-23T12:00:00Z"
Since = Annotated[
    int | None, typer.Option(parser=_moment, metavar="WHEN", help=f"From then on: {WHEN}.", show_default=False)
]
Until = Annotated[int | None, typer.Option(parser=_moment, metavar="WHEN", help="Before then.", show_default=False)]
KeyFilter = Annotated[str | None, typer.Option("--key", help="Name or id of a key.")]


def _store(config: Path | None) -> LogStore:
    settings = load(config)
    store = open_store(settings.logs_url, settings.logs.timeout_s)
    store.allow_calls(CALLS_MAX)  # a process of its own, that waits for nothing but the store
    return store


@app.command("query")
def query_logs(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT over the table logs, in DuckDB's dialect.")],
    since: Since = None,
    until: Until = None,
    key: KeyFilter = None,
    limit: Annotated[int, typer.Option(help="Rows to print.", min=1)] = 1000,
    timeout: Annotated[str, typer.Option(help="Longest time of the query itself.")] = f"{TIMEOUT_S:g}s",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Ask the log store in SQL. Its columns are in docs/log-schema.md, and `time`, `cost_usd`, `dt` and `hour`.

    --since and --until decide which objects are fetched: give them for a store that is large.
    """
    timeout_s = duration_s(timeout, what="--timeout")
    found = run(query(_store(config), sql, Interval(since, until, key), limit=limit, timeout_s=timeout_s))
    if json:
        _print_values(named(found))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(found.names)
        writer.writerows([_plain(value) for value in row] for row in found.rows)
    else:
        # as text: a year or an id reads badly with separators
        print_table(
            found.names, [[None if (v := _plain(value)) is None else str(v) for value in row] for row in found.rows]
        )
    if found.more:
        note(f"there are more than {limit} rows; --limit shows more")


@app.command()
def stats(
    since: Since = None,
    until: Until = None,
    key: KeyFilter = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Requests, errors, tokens, cost and times in total, and by the models and keys that cost most."""
    found = run(summary(_store(config), Interval(since, until, key)))
    if json:
        _print_values({"objects": found.objects, **found.total, "models": found.models, "keys": found.keys})
        return
    print_facts({"objects": found.objects, **{name: _plain(value) for name, value in found.total.items()}})
    for title, rows in (("MODEL", found.models), ("KEY", found.keys)):
        if rows:
            typer.echo()
            head = (title, *(name.upper() for name in list(rows[0])[1:]))
            print_table(head, [[_plain(v) for v in row.values()] for row in rows], right=head[1:])


@app.command()
def tail(
    count: Annotated[int, typer.Option("-n", "--count", help="How many.", min=1, max=PAGE_MAX)] = 20,
    since: Since = None,
    until: Until = None,
    key: KeyFilter = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    status: Annotated[str | None, typer.Option(help="Only this status, like 429 or 5xx.")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only what went wrong.")] = False,
    bodies: Annotated[bool, typer.Option("--bodies", help="With --json: request and response bodies too.")] = False,
    following: Annotated[bool, typer.Option("-f", "--follow", help="Wait for more, until Ctrl-C.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show the newest records, the newest last; with --json one object a line."""
    filters = LogFilters(since_us=since, until_us=until, key=key, model=model, status=status, errors=errors)
    show = _show_json if json else _show_line

    async def work() -> None:
        store = _store(config)
        arriving = follow(store, filters) if following else None
        if arriving is not None:
            await anext(arriving)  # what is there by now is the page's
        page = await search(store, filters, count, bodies=bodies)
        for record in reversed(page.records):
            show(record)
        if arriving is not None:
            async for records in arriving:
                for record in records:
                    show(record)

    try:
        run(work())
    except (KeyboardInterrupt, asyncio.CancelledError):
        if not following:
            raise


def _show_json(record: dict[str, Any]) -> None:
    typer.echo(msgspec.json.encode(record))


def _show_line(record: dict[str, Any]) -> None:
    tokens = f"{record.get('tokens_input') or 0}+{record.get('tokens_output') or 0}"
    typer.echo(
        f"{instant(record['time_us'])}  {record.get('status') or '-'}  {record.get('key_name') or '-'}  "
        f"{record.get('model') or '-'}  {tokens} tokens  {usd(record.get('cost_nano') or 0)} USD  "
        f"{(record.get('total_us') or 0) // 1000} ms  {record['request_id']}  {record.get('error') or ''}".rstrip()
    )


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)


def _print_values(values: Any) -> None:
    typer.echo(msgspec.json.format(_json(_fixed(values)), indent=2).decode())


def _fixed(value: Any) -> Any:
    """Decimals, wherever they stand, without an exponent."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, list):
        return [_fixed(item) for item in value]
    return {name: _fixed(item) for name, item in value.items()} if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    """A value of a result as text: times in RFC 3339, lists and maps as JSON."""
    value = _fixed(value)
    if value is None or isinstance(value, str | int | float):
        return value
    text = _json(value).decode()
    return text[1:-1] if text.startswith('"') and "\\" not in text else text


@app.command("verify")
def verify_logs(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Account for every record of every gateway: delivered once, pending in Redis, or dropped. Exit 1 if any is lost,
    double or unreadable.

    Reads the whole log store and, with REDIS_URL, the queue. Without Redis, what a running gateway has not shipped
    yet is not seen.
    """
    from tollkeeper.app.log_queue import prove

    report, why_not = run(prove(load(config)))
    if why_not:
        note(f"the queue was not asked, and what waits there may count as lost: {why_not}")
    if json:
        print_json(proof_words(report))
    else:
        _print(report)
    if not report.complete:
        raise typer.Exit(1)


def _print(report: VerifyReport) -> None:
    rows = [
        (name, found.records, found.last, count(found.pending), *map(_ranges, _kinds(found)))
        for name, found in report.producers.items()
    ]
    head = ("PRODUCER", "RECORDS", "LAST", "PENDING", "DROPPED", "LOST", "DOUBLE")
    print_table(head, rows, right=("RECORDS", "LAST", "PENDING"))
    for path in report.unreadable:
        note(f"unreadable: {path}")
    short = sum(count(found.dropped) + count(found.taken) for found in report.producers.values())
    pending = sum(count(found.pending) for found in report.producers.values())
    state = "complete: every record is there, once" if report.complete else "NOT complete"
    if report.complete and (short or pending):
        state = f"nothing lost or double: {pending} pending, {short} dropped"
    typer.echo(f"{report.records} records in {report.objects} objects, {state}")


def _kinds(found: ProducerReport) -> tuple[Sequence[NumberRange], ...]:
    return (*found.dropped, *found.taken), found.gaps, found.doubles


def _ranges(ranges: Sequence[NumberRange]) -> str:
    shown = " ".join(f"{first}-{last}" for first, last in sorted(ranges)[:RANGES_SHOWN])
    more = f" and {len(ranges) - RANGES_SHOWN} more" if len(ranges) > RANGES_SHOWN else ""
    return shown + more or "-"
