"""Going on with a run: what its earlier parts have left, found by every rank, agreed on by all."""

import hashlib
import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from onward.errors import FileError, SettingError
from onward.files import write_text
from onward.plan.tasks import Plan, Product, ProductKind
from onward.runtime.store import Store
from onward.runtime.workers import Worker
from onward.transport.messages import Transport

BEGUN = "begun.json"
"""What a rank began its run with."""

CONFIG = "config.toml"
"""The settings of the run, for those who go on with it."""

TOKEN = "token"
"""A word of this start, by which ranks see that they share a disk."""

Holders = dict[Product, list[int]]
"""The ranks that can read each product that was made before."""


def open_store(
    folder: Path,
    rank: int,
    config: str,
    settings: str,
    first_weights: Sequence[str | None],
    every: int,
    *,
    is_kept: bool = False,
    held_out: Sequence[str] = (),
) -> Store:
    """Open the folder of a run's states, or one that is begun now.

    Args:
        folder: The folder.
        rank: This rank.
        config: Settings of the run as TOML, for those who go on with it.
        settings: All that decides the weights, a line each.
        first_weights: Digest of each block's first weights, None where they are not here.
        every: Chapters between the ends from which the run can go on.
        is_kept: Whether it may go on after its last chapter.
        held_out: Digests of the samples that decide no weights: those of tests and validations.

    Raises:
        SettingError: The folder is of a run with other settings or samples.
        FileError: The folder cannot be written to.
    """
    digest = hashlib.sha256(settings.encode()).hexdigest()
    store = Store(folder, rank, digest, every, is_kept=is_kept)
    begun = {
        "settings": settings,
        "first_weights": list(first_weights),
        "held_out": list(held_out),
    }
    try:
        for path in sorted(folder.glob(f"rank-*/{BEGUN}")):
            _check_begun(path, settings, first_weights, held_out)
        # Of a run that has got more epochs, those of now.
        write_text(store.own / CONFIG, config)
        if not (store.own / BEGUN).exists():
            write_text(store.own / BEGUN, json.dumps(begun))
        write_text(store.own / TOKEN, uuid.uuid4().hex)
    except BaseException:
        store.close()  # The same process may try again.
        raise
    return store


def _check_begun(
    path: Path, settings: str, first_weights: Sequence[str | None], held_out: Sequence[str]
) -> None:
    """Refuse a run that was begun with other settings or samples, or from other weights."""
    now = set(settings.splitlines())
    try:
        begun = json.loads(path.read_text())
        then, weights = set(begun["settings"].splitlines()), list(begun["first_weights"])
        # Earlier versions did not keep it.
        looked_at = list(begun.get("held_out", held_out))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(
            f"{path} is damaged ({error!r}), and nobody can tell which run it is of. Remove "
            f"{path.parent} to go on without it."
        ) from error
    devices = [next((s for s in each if s.startswith("device: ")), "") for each in (then, now)]
    if devices[0] != devices[1]:
        was, would_be = (each.removeprefix("device: ") for each in devices)
        raise SettingError(
            f"The run in {path.parent.parent} computed on {was}, on which its weights depend, and "
            f"would go on on {would_be}. Resume it with --device {was} on a machine that has one, "
            f"or begin anew."
        )
    if then != now:
        raise SettingError(
            f"{path.parent.parent} is of a run with other settings. Then: "
            f"{', '.join(sorted(then - now))}; now: {', '.join(sorted(now - then))}. A run goes "
            f"on with the settings it was begun with; for more epochs, with schedules that are "
            f"constant, since others spread the learning rate over all epochs."
        )
    if looked_at != list(held_out):
        raise SettingError(
            f"{path.parent.parent} is of a run with other test or validation samples, and the "
            f"training samples are the same. A run goes on with the samples it was begun with: "
            f"put them back, or begin anew."
        )
    if any(a and b and a != b for a, b in zip(first_weights, weights, strict=False)):
        raise SettingError(
            f"{path.parent.parent} is of a run that began from other weights. Seed torch before "
            f"the network is built, as it was then."
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
    made = {product for task in plan.all_tasks() for product in plan.makes(task)}
    found = store.look(lambda product: worker.layout(product) if product in made else None)
    note = {
        "products": sorted(found),
        "damaged": sorted(store.damaged),
        "token": (store.own / TOKEN).read_text(),
    }
    if transport.carries:
        notes = dict(enumerate(transport.all_gather("held", note)))
    else:
        # All read the same folder, and one may come back while the others go on.
        notes = {transport.rank: note}
        store.seen.update(range(transport.num_ranks))
    holders: Holders = {}
    for rank, theirs in notes.items():
        with suppress(OSError):
            if (store.folder / f"rank-{rank}" / TOKEN).read_text() == theirs["token"]:
                store.seen.add(rank)
        for kind, time, block in theirs["products"]:
            holders.setdefault(Product(ProductKind(kind), time, block), []).append(rank)
    damaged = sorted({text for theirs in notes.values() for text in theirs["damaged"]})
    return replace(plan, held=frozenset(holders)), holders, damaged
