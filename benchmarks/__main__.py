"""Runs every benchmark, prints its table and writes `benchmarks/RESULTS.md` with machine and date.

`python -m benchmarks NAME…`, or `make bench BENCH="NAME…"`, runs some and leaves RESULTS.md alone.
"""

import importlib
import platform
import subprocess
import sys
import time
from pathlib import Path

QUESTIONS = ("gateway", "gateways", "streams", "store", "limiter", "window", "logs", "billing", "recovery", "scale")


def machine() -> str:
    """What the figures were taken on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    redis = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout.split()[
        2
    ]
    cores = len(Path("/proc/cpuinfo").read_text().split("processor\t")) - 1
    return (
        f"{cores} cores of {model}, Linux {platform.release()}, Python {platform.python_version()}, Redis {redis[2:]}"
    )


def main() -> None:
    """Run all, or those named."""
    named = sys.argv[1:]
    sections = []
    for name in named or QUESTIONS:
        module = importlib.import_module(f"benchmarks.{name}")
        print(f"\n{module.QUESTION}\n", flush=True)
        table = module.run()
        print(table, flush=True)
        sections.append(f"## {module.QUESTION}\n\n{table}\n\n{module.NOTES}\n")
    if not named:
        today = time.strftime("%Y-%m-%d", time.gmtime())
        head = f"# Results\n\n{today}, {machine()}. Shared and noisy: trust ratios.\n\n"
        Path(__file__).with_name("RESULTS.md").write_text(head + "\n".join(sections))


main()
