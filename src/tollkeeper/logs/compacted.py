"""Which objects count, where small ones are put together in larger ones (compaction.py): the readers' side.

In the hour's folder, beside what shippers wrote:

    compact-<n>.plan.json             which objects, and what becomes of them; made first, never changed
    compact-<n>-<until>.jsonl.gz      their records, in the plan's order (`until`: no record is younger, in Unix µs)
    compact-<n>.counts.json           from when this is there, it counts instead of the objects of the plan
"""

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from tollkeeper.domain.errors import LogStoreUnavailable
from tollkeeper.logs import objects
from tollkeeper.logs.sinks import LogStore, StoredObject

_NAME: Final = re.compile(r"compact-(\d{1,6})(\.plan\.json|\.counts\.json|-\d{1,17}\.(?:jsonl\.gz|parquet))")


class Plan(msgspec.Struct, frozen=True):
    """Which objects, by path, become which one."""

    path: str
    members: tuple[str, ...]

    @property
    def stems(self) -> set[str]:
        """Names of the members, whatever format they come back in."""
        return set(map(stem_of, self.members))


class Folder(msgspec.Struct):
    """The objects of an hour's folder by kind; those of plans by their number."""

    path: str
    plain: list[StoredObject]
    plans: dict[int, StoredObject]
    built: dict[int, StoredObject]
    marks: dict[int, StoredObject]


async def counted(store: LogStore, items: Iterable[StoredObject]) -> list[StoredObject]:
    """Of all objects of some hours' folders, those with log records that count: each record is in one of them.

    Plans are read only while something of them is left. Raises `LogStoreUnavailable`.
    """
    found: list[StoredObject] = []
    for folder in folders_of(items):
        found += [folder.built[number] for number in folder.marks if number in folder.built]
        gone: set[str] = set()
        if folder.plain:
            for number in folder.marks.keys() & folder.built.keys():
                gone |= (await plan_of(store, folder, number)).stems
        found += [item for item in folder.plain if stem_of(item.path) not in gone]
    return found


def is_compacted(path: str) -> bool:
    """Whether a path is one of those that compaction makes: its records were in other objects before."""
    return _NAME.fullmatch(path.rpartition("/")[2]) is not None


async def plan_of(store: LogStore, folder: Folder, number: int) -> Plan:
    """One of a folder's plans. Raises `LogStoreUnavailable`."""
    path = beside(folder, number, "plan")
    try:
        return msgspec.json.decode(await store.read(path), type=Plan)
    except msgspec.MsgspecError:
        raise LogStoreUnavailable(f"{store.url}: {path} is not as it was written") from None


def beside(folder: Folder, number: int, what: str) -> str:
    """The path of a `plan`, or of the mark that it `counts`."""
    return f"{folder.path}/compact-{number}.{what}.json"


def folders_of(items: Iterable[StoredObject]) -> list[Folder]:
    """By hour, in order."""
    found: dict[str, Folder] = {}
    for item in sorted(items, key=lambda each: each.path):
        path, _, name = item.path.rpartition("/")
        folder = found.setdefault(path, Folder(path, [], {}, {}, {}))
        match = _NAME.fullmatch(name)
        if match is not None:
            kind = {".plan.json": folder.plans, ".counts.json": folder.marks}.get(match[2], folder.built)
            kind[int(match[1])] = item
        elif objects.is_log_object(item.path):
            folder.plain.append(item)
    return list(found.values())


def stem_of(path: str) -> str:
    """The path of a batch without its format: shipped again it may come in another."""
    return path.removesuffix(objects.suffix_of(path))
