"""Going on with a run: what its earlier parts have left, found by every rank, agreed on by all."""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from onward.errors import FileError, SettingError
from onward.plan.tasks import Plan, Product, ProductKind
from onward.runtime.store import Layouts, Store
from onward.runtime.workers import Worker
from onward.transport.messages import Transport

BEGUN = "begun.json"
"""What a rank began its run with."""

CONFIG = "config.toml"
"""The settings of the run, for those who go on with it."""

Holders = dict[Product, list[int]]
"""The ranks that can read each product that was made before."""

NOTHING: dict[str, Any] = {"products": [], "token": None, "damaged": []}
"""What a rank tells that has nothing."""

TOKEN = "token"
"""A word of this start, by which ranks see that they share a disk."""


def open_store(
    folder: Path,
    rank: int,
    config: str,
    settings: str,
    first_weights: Sequence[str | None],
    every: int,
) -> Store:
    """Open the folder of a run's states, or one that is begun now.

    Args:
        folder: The folder.
        rank: This rank.
        config: Settings of the run as TOML, for those who go on with it.
        settings: All that decides the weights, a line each.
        first_weights: Digest of each block's first weights, None where they are not here.
        every: Chapters between the ends from which the run can go on.

    Raises:
        SettingError: The folder is of a run with other settings.
        FileError: The folder cannot be written to.
    """
    store = Store(folder, rank, hashlib.sha256(settings.encode()).hexdigest(), every)
    begun = {"settings": settings, "first_weights": list(first_weights)}
    try:
        for path in sorted(folder.glob(f"rank-*/{BEGUN}")):
            _compare(path, settings, first_weights)
        own = store.own / BEGUN
        if not own.exists():
            store.write(store.own / CONFIG, config)
            store.write(own, json.dumps(begun))
        store.write(store.own / TOKEN, uuid.uuid4().hex)
    except BaseException:
        store.close()  # The same process may try again.
        raise
    return store


def _compare(path: Path, settings: str, first_weights: Sequence[str | None]) -> None:
    try:
        begun = json.loads(path.read_text())
        theirs, weights = str(begun["settings"]), list(begun["first_weights"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise FileError(
            f"{path} is damaged ({error!r}), and nobody can tell which run it is of. Remove "
            f"{path.parent} to go on without it."
        ) from error
    if theirs != settings:
        was, is_now = set(theirs.splitlines()), set(settings.splitlines())
        raise SettingError(
            f"{path.parent.parent} is of a run with other settings. Then: "
            f"{', '.join(sorted(was - is_now))}; now: {', '.join(sorted(is_now - was))}. A run "
            f"goes on with the settings it was begun with."
        )
    for mine, other in zip(first_weights, weights, strict=False):
        if None not in (mine, other) and mine != other:
            raise SettingError(
                f"{path.parent.parent} is of a run that began from other weights. Seed torch "
                f"before the network is built, as it was then."
            )


def agree_on_rest(
    store: Store, plan: Plan, worker: Worker, transport: Transport
) -> tuple[Plan, Holders, list[str]]:
    """Agree with all ranks on what is left to do.

    Args:
        store: What this rank has.
        plan: All tasks.
        worker: Knows the shapes of what they make.
        transport: The way to the other ranks.

    Returns:
        The plan, with what is held; the ranks that can read each held product; and what is
        damaged, and not used.
    """
    own = describe(store, plan, worker)
    if transport.carries:
        notes = transport.all_gather("held", own)
    else:
        # All read the same folder, and one may come back while the others go on.
        notes = [own if rank == transport.rank else NOTHING for rank in range(transport.num_ranks)]
        store.seen = set(range(transport.num_ranks))
    held, holders = agree(store, plan, notes)
    return held, holders, sorted({text for note in notes for text in note["damaged"]})


def describe(store: Store, plan: Plan, worker: Worker) -> dict[str, Any]:
    """Return what a rank tells the others of what it has."""
    found = store.look(layouts(plan, worker))
    return {
        "products": [list(product) for product in sorted(found)],
        "token": _read(store.own / TOKEN),
        "damaged": store.damaged,
    }


def agree(store: Store, plan: Plan, notes: Sequence[Mapping[str, Any]]) -> tuple[Plan, Holders]:
    """Return the plan with what the ranks hold, and who holds it, from what each says."""
    holders: Holders = {}
    for rank, note in enumerate(notes):
        token = _read(store.folder / f"rank-{rank}" / TOKEN)
        if token is not None and token == note["token"]:
            store.seen.add(rank)
        for thing, time, block in note["products"]:
            holders.setdefault(Product(ProductKind(thing), time, block), []).append(rank)
    return replace(plan, held=frozenset(holders)), holders


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def layouts(plan: Plan, worker: Worker) -> Layouts:
    """Return a way to the shapes of what a run makes: None for what it does not make."""
    tasks = set(plan.all_tasks())

    def layout(product: Product) -> list[Tensor] | None:
        maker = plan.maker(product)
        is_made = maker in tasks and product in plan.makes(maker)
        return worker.layout(product) if is_made else None

    return layout
