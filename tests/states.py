"""Finished tasks on a disk, which tests keep and look for."""

import torch

from onward.plan.tasks import Product, ProductKind, Task, TaskKind
from onward.runtime.store import Store

TASK = Task(TaskKind.TRAIN, 3, 1)
WEIGHTS, MOMENTS = (
    Product(thing, 3, 1) for thing in (ProductKind.WEIGHTS, ProductKind.OPTIMIZER_STATE)
)
REPORT = Product(ProductKind.REPORT, 3, 1)
LAYOUTS = {
    WEIGHTS: [torch.empty(4, 3), torch.empty(4)],
    MOMENTS: [torch.empty(4, 3), torch.empty((), dtype=torch.int64)],
    REPORT: [torch.empty(2, dtype=torch.float64)],
}


def opened(folder, rank=0, digest="of these settings"):
    return Store(folder, rank, digest, every=1)


def content(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        WEIGHTS: [torch.rand(4, 3, generator=draw), torch.rand(4, generator=draw)],
        MOMENTS: [torch.rand(4, 3, generator=draw), torch.tensor(7)],
        REPORT: [torch.tensor([0.1, float("nan")], dtype=torch.float64)],
    }


def found(folder, **changes):
    store = opened(folder, **changes)
    products = set(store.look(LAYOUTS.get))
    store.close()
    return store, products


def with_a_task(folder):
    """Keep a task in a folder, and return it."""
    store = opened(folder)
    store.keep(TASK, content())
    store.close()
    return folder
