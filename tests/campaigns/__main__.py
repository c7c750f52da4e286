"""`python -m tests.campaigns [--seed N] [--rounds N] [NAME…]`: runs campaigns, prints a table of each.

Ends with status 1 if any round found a difference.
"""

import argparse
import importlib
import sys
import time

from benchmarks.table import table

from tests.campaigns import Outcome

CAMPAIGNS = ("twins", "load", "failover", "logs", "storm", "faults", "controls", "pressure", "soak")
ROUNDS = 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(CAMPAIGNS)}; default: all")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each kind of trial; default: %(default)s")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(CAMPAIGNS):
        parser.error(f"there is no campaign {', '.join(sorted(unknown))}; known are {', '.join(CAMPAIGNS)}")
    differences = 0
    for name in chosen.names or CAMPAIGNS:
        module = importlib.import_module(f"tests.campaigns.{name}")
        print(f"\n{module.QUESTION}\n", flush=True)
        begun, outcomes = time.monotonic(), list[Outcome]()
        for outcome in module.run(chosen.seed, chosen.rounds):
            outcomes.append(outcome)
            print(f"  {outcome.trial}: {outcome.differences} differences", file=sys.stderr, flush=True)
        rows = [(o.trial, str(o.rounds), o.checked, str(o.differences), o.notes) for o in outcomes]
        print(table(("trial", "rounds", "checked", "differences", "notes"), rows))
        print(f"\nSeed {chosen.seed}, {time.monotonic() - begun:.0f} s.", flush=True)
        differences += sum(o.differences for o in outcomes)
    return 1 if differences else 0


sys.exit(main())
