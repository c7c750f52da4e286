"""`tollkeeper logs`: what is in the log store, and the proof that it is whole."""

from typing import Any

import typer

from tollkeeper.cli.common import ConfigOption, JsonOption, note, print_json, print_table, run
from tollkeeper.logs.sinks import open_store
from tollkeeper.logs.verify import ProducerReport, VerifyReport, verify
from tollkeeper.settings import load

app = typer.Typer(help="Request logs in the log store: verify.", no_args_is_help=True)


@app.command("verify")
def verify_logs(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Read the whole log store and prove that every producer's records are there, each once. Exit 1 if not.

    What a running gateway has not shipped yet is not in the store; a gap is what was dropped or lost.
    """
    settings = load(config)
    report = run(verify(open_store(settings.logs_url, settings.logs.timeout_s)))
    if json:
        print_json(_words(report))
    else:
        _print(report)
    if not report.complete:
        raise typer.Exit(1)


def _words(report: VerifyReport) -> dict[str, Any]:
    return {
        "complete": report.complete,
        "objects": report.objects,
        "records": report.records,
        "unreadable": list(report.unreadable),
        "producers": {
            name: {
                "records": found.records,
                "last": found.last,
                "missing": found.missing,
                "gaps": [list(gap) for gap in found.gaps],
                "doubles": [list(double) for double in found.doubles],
            }
            for name, found in report.producers.items()
        },
    }


def _print(report: VerifyReport) -> None:
    rows = [(name, found.records, found.last, *_faults(found)) for name, found in report.producers.items()]
    print_table(("PRODUCER", "RECORDS", "LAST", "MISSING", "DOUBLE"), rows, right=("RECORDS", "LAST"))
    for path in report.unreadable:
        note(f"unreadable: {path}")
    state = "complete: every record is there, once" if report.complete else "NOT complete"
    typer.echo(f"{report.records} records in {report.objects} objects, {state}")


def _faults(found: ProducerReport) -> tuple[str, str]:
    gaps = " ".join(f"{first}-{last}" for first, last in found.gaps)
    return gaps or "-", " ".join(f"{first}-{last}" for first, last in found.doubles) or "-"
