"""A model of holds, settlement and recovery (ARCHITECTURE.md, the settlement protocol), run through random schedules.

Every change of spend is a numbered entry in the outbox of the producer (gateway process) that made it: settle, void,
and, for a producer that died, one close that charges what it had dispatched and not settled. Redis applies the
entries of each in order and remembers the last number (its mark); a number at or below the mark changes nothing.
So total = sum of all entries up to the marks: any (totals, marks) that was ever true is consistent, and one state is
newer than another exactly when its marks dominate. No epochs, no clocks, no expiry that charges by itself.

Faults: lost requests and replies, database writes that are lost, late or reordered, Redis restarted empty or rolled
back to an older state, producers that crash with requests in flight. Checks: nothing admitted beyond the budget, and
at the end every request charged exactly once: its true cost, or its hold if its producer died before settling it; no
hold is left behind. Each broken variant below is caught.
"""

import copy
import random

CLOSED = 10**9  # the mark of a producer that will never write again
BUDGET = 120


def dominates(newer, older):
    return all(newer.get(p, 0) >= n for p, n in older.items())


class Producer:
    def __init__(self, run):
        self.outbox, self.number, self.acknowledged = [], 0, 0
        self.alive, self.closing, self.live = True, False, {}
        self.ready_for = run  # the Redis run for which it has re-sent its entries and re-asserted its holds

    def append(self, *entry):
        self.number += 1
        self.outbox.append((self.number, *entry))


class World:
    def __init__(self, seed, broken=None):
        self.rng, self.broken, self.run, self.requests, self.now = random.Random(seed), broken, 1, 0, 0
        self.redis = {
            "spend": {"key1": 0, "key2": 0, "org": 0},
            "marks": {},
            "holds": {},
            "changed": {},
            "version": 0,
        }
        self.database = {"spend": dict(self.redis["spend"]), "marks": {}}
        self.backups, self.writes, self.truth, self.overspent = [], [], {}, False
        self.producers = {}
        for _ in range(3):
            self.start()

    def start(self):
        self.producers[len(self.producers) + 1] = Producer(self.run)

    # a request's life

    def admission_open(self, producer):
        if self.broken == "gate looks at itself only":
            return producer.ready_for == self.run
        return all(
            q.ready_for == self.run or self.database["marks"].get(p) == CLOSED for p, q in self.producers.items()
        )

    def admit(self, p):
        producer, state = self.producers[p], self.redis
        if not producer.alive or state is None or not self.admission_open(producer):
            return
        hold, key = self.rng.randint(5, 9), self.rng.choice(["key1", "key2"])
        if state["spend"]["org"] + sum(h for _, h, _, _ in state["holds"].values()) + hold > BUDGET:
            return
        self.overspent |= sum(self.truth.values()) + hold > BUDGET
        self.requests += 1
        state["holds"][self.requests] = (p, hold, key, self.now)
        producer.live[self.requests] = (hold, key)  # the dispatch line in the outbox file
        self.truth[self.requests] = hold

    def finish(self, p):
        producer = self.producers[p]
        if producer.alive and producer.live:
            request = self.rng.choice(list(producer.live))
            hold, key = producer.live.pop(request)
            self.truth[request] = 0 if self.rng.random() < 0.15 else self.rng.randint(1, hold)  # 0: void
            producer.append("settle", [(request, key, self.truth[request])])

    def crash(self, p):
        producer = self.producers[p]
        if producer.alive:
            producer.alive, producer.acknowledged = False, 0
            self.start()

    def close(self, p):
        """By whoever locks a dead producer's outbox: one last entry charges what was dispatched and not settled."""
        producer = self.producers[p]
        if not producer.alive and not producer.closing:
            producer.closing = True
            producer.append("close", [(request, key, hold) for request, (hold, key) in producer.live.items()])

    # inside Redis, atomically

    def script(self, p, number, kind, charges):
        state = self.redis
        if state is None:
            return "cold"
        mark = state["marks"].get(p, 0)
        if self.broken != "no mark check":
            if number <= mark:
                return "ok"
            if number > mark + 1:
                return "gap"
        for request, key, amount in charges:
            state["holds"].pop(request, None)
            self.charge(key, amount)
        if kind == "close":
            state["holds"] = {r: h for r, h in state["holds"].items() if h[0] != p}
        state["marks"][p] = CLOSED if kind == "close" else max(mark, number)
        return "ok"

    def charge(self, key, amount):
        for scope in (key, "org"):
            self.redis["spend"][scope] += amount
            self.redis["version"] += (
                1  # never reused: a flag that counted from one again was cleared by an older snapshot's commit
            )
            self.redis["changed"][scope] = self.redis["version"] if self.broken != "versions start again" else 1

    def sweep(self):
        if self.broken == "expired holds charge by themselves" and self.redis:
            for request, (_, hold, key, since) in list(self.redis["holds"].items()):
                if self.now > since + 25:
                    del self.redis["holds"][request]
                    self.charge(key, hold)

    # a producer and Redis

    def send(self, p, faulty=True):
        producer = self.producers[p]
        for number, kind, charges in [e for e in producer.outbox if e[0] > producer.acknowledged]:
            if faulty and self.rng.random() < 0.1:
                return  # request lost
            if self.script(p, number, kind, charges) != "ok":
                self.recover(producer, p)
                return
            if faulty and self.rng.random() < 0.1:
                return  # reply lost
            producer.acknowledged = number

    def recover(self, producer, p):
        """A Redis that does not dominate the database is seeded from it, absolutely and without holds."""
        if self.redis is None or not dominates(self.redis["marks"], self.database["marks"]):
            old, self.redis = self.redis, {"holds": {}, "changed": {}, "version": 1, **copy.deepcopy(self.database)}
            if old and self.broken == "seeding adds":
                for scope, value in old["spend"].items():
                    self.redis["spend"][scope] += value
            if old and self.broken == "seeding keeps holds":
                self.redis["holds"] = old["holds"]
            self.redis["changed"] = dict.fromkeys(self.redis["spend"], 1)
            self.run += 1
        producer.acknowledged = min(producer.acknowledged, self.redis["marks"].get(p, 0))

    def heartbeat(self, p, faulty=True):
        """Now and then each producer compares marks, re-sends and re-asserts; an idle one notices a loss too."""
        producer = self.producers[p]
        self.recover(producer, p)
        self.send(p, faulty)
        if self.redis is None:
            return
        if producer.alive:
            for request, (hold, key) in producer.live.items():
                self.redis["holds"].setdefault(request, (p, hold, key, self.now))
        sent = not producer.outbox or self.redis["marks"].get(p, 0) >= producer.outbox[-1][0]
        if sent and (producer.alive or producer.closing):
            producer.ready_for = self.run

    # the sync worker: partial snapshots

    def sync_read(self):
        if self.redis is not None:
            changed = dict(self.redis["changed"])
            if self.broken == "changed flags cleared when read":
                self.redis["changed"] = {}
            self.writes.append(
                {
                    "marks": dict(self.redis["marks"]),
                    "changed": changed,
                    "run": self.run,
                    "spend": {scope: self.redis["spend"][scope] for scope in changed},
                }
            )

    def sync_write(self):
        if not self.writes:
            return
        snapshot = self.writes.pop(self.rng.randrange(len(self.writes)))
        if self.rng.random() < 0.15:
            return  # the worker died before the commit
        newer = dominates(snapshot["marks"], self.database["marks"])
        if self.broken == "no guard" or newer:
            self.database["spend"].update(snapshot["spend"])
            self.database["marks"] = snapshot["marks"]
            if (
                self.redis is not None and snapshot["run"] == self.run
            ):  # flags go after the commit, if unchanged since
                for scope, version in snapshot["changed"].items():
                    if self.redis["changed"].get(scope) == version:
                        del self.redis["changed"][scope]

    def forget(self, p):
        covered = self.database["marks"].get(p, 0)
        if self.broken == "forgets what only Redis has" and self.redis:
            covered = max(covered, self.redis["marks"].get(p, 0))
        self.producers[p].outbox = [e for e in self.producers[p].outbox if e[0] > covered]

    # schedules

    def step(self):
        self.now += 1
        p, r = self.rng.choice(list(self.producers)), self.rng.random()
        for share, action in (
            (0.25, self.admit),
            (0.17, self.finish),
            (0.16, self.send),
            (0.08, self.heartbeat),
            (0.06, self.forget),
            (0.03, self.close),
            (0.015, self.crash),
        ):
            if r < share:
                action(p)
                return
            r -= share
        for share, action in (
            (0.08, self.sync_read),
            (0.08, self.sync_write),
            (0.03, self.sweep),
            (0.02, self.backup),
            (0.015, self.flush),
            (0.015, self.rollback),
        ):
            if r < share:
                action()
                return
            r -= share

    def backup(self):
        self.backups.append(copy.deepcopy(self.redis))

    def flush(self):
        self.redis, self.run = None, self.run + 1

    def rollback(self):
        if self.backups:
            self.redis, self.run = copy.deepcopy(self.rng.choice(self.backups)), self.run + 1

    def ends_true(self):
        for _ in range(8):
            for p, producer in self.producers.items():
                while producer.alive and producer.live:
                    self.finish(p)
                self.close(p)
                self.heartbeat(p, faulty=False)
        spend, truth = self.redis["spend"], sum(self.truth.values())
        return (
            spend["org"] == spend["key1"] + spend["key2"] == truth and not self.overspent and not self.redis["holds"]
        )


BROKEN = (
    "no mark check",
    "seeding adds",
    "seeding keeps holds",
    "no guard",
    "forgets what only Redis has",
    "changed flags cleared when read",
    "versions start again",
    "expired holds charge by themselves",
    "gate looks at itself only",
)

if __name__ == "__main__":
    for broken in (None, *BROKEN):
        seeds = 20_000 if broken is None else 2_000
        wrong = []
        for seed in range(seeds):
            world = World(seed, broken)
            for _ in range(160):
                world.step()
            if not world.ends_true():
                wrong.append(seed)
        print(f"{broken or 'as designed'}: {len(wrong)} of {seeds} schedules end wrong", wrong[:3])
