"""One graph as a data set: some nodes to learn from, others to test with."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from onward.batch import Batch
from onward.data.arrays import read_members
from onward.data.dataset import Dataset, samples
from onward.data.labels import as_names, check_classes, read_labels
from onward.data.numbers import Numbers, real
from onward.errors import DataError, OnwardWarning

SETS = ("train", "validation", "test")
"""Sets of nodes, in the order in which they are asked for."""

FEATURES_CSR = ("x_data", "x_indices", "x_indptr", "x_shape")
"""Members of a file that hold the features as a compressed sparse matrix, row by row."""

SPLITS = 5
"""Splits that `node_split` knows."""


def graph(
    x: Any,
    edge_index: Numbers = None,
    y: Numbers = None,
    *,
    train: Numbers = None,
    validation: Numbers = None,
    test: Numbers = None,
    undirected: bool | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "graph",
) -> Dataset:
    """Make a data set of one graph, and check that it can be learned from.

    All nodes and edges are seen in training; classes of the nodes in `train` alone are. A set is a
    mask, shape (nodes,), or the numbers of its nodes.

    Args:
        x: Features of the nodes, shape (nodes, features). Or a `Data` of PyTorch Geometric, which
            brings the edges, classes and masks that are not given.
        edge_index: Edges, shape (2, edges): the nodes that messages go out from, and below them
            those that they go to.
        y: Class of each node. Those of nodes in no set are not looked at.
        train: Nodes to learn from.
        validation: Nodes for validation. None: none.
        test: Nodes for the test.
        undirected: Whether each edge is also added the other way round, where it is missing. None:
            no, with a warning where edges go one way only. False: no.
        num_classes: How many classes there are. None: one more than the largest label.
        class_names: Name of each class, in order. None: where `y` has names, these, sorted.
        name: What the data set is called in reports and errors.

    Returns:
        A data set of one batch. Its `structure` has `edge_index`; the training nodes and their
        classes as `known` and `known_label`, which methods that pass labels along may use; and as
        `asked` the nodes of the set.

    Raises:
        DataError: Edges, sets or classes do not fit, or cannot be learned from.

    Example:
        >>> ring = torch.stack([torch.arange(6), torch.arange(6).roll(1)])
        >>> dataset = graph(
        ...     torch.eye(6), ring, [0, 1, 0, 1, 0, 1], train=[0, 1], test=[4, 5], undirected=True
        ... )
        >>> dataset.training.index, dataset.training.structure["edge_index"].shape
        (tensor([0, 1]), torch.Size([2, 12]))
    """
    given = dict(zip(SETS, (train, validation, test), strict=True))
    if hasattr(x, "edge_index"):
        data, x = x, x.x
        edge_index = data.edge_index if edge_index is None else edge_index
        y = data.y if y is None else y
        for part, mask in zip(SETS, ("train_mask", "val_mask", "test_mask"), strict=True):
            given[part] = getattr(data, mask, None) if given[part] is None else given[part]
        warn_of_edge_features(data, name)
    if isinstance(x, list | tuple) and any(hasattr(each, "edge_index") for each in x):
        raise DataError(f"{name}: these are several graphs. For those, see ow.graphs.")
    features = features_of(x, name)
    edges = edges_of(edge_index, len(features), name, undirected=bool(undirected))
    if undirected is None:
        _warn_of_one_way(edges, len(features), name)
    if y is None:
        raise DataError(f"{name}: there is no y. Give the class of each node.")
    for part in ("train", "test"):
        if given[part] is None:
            raise DataError(
                f"{name}: no nodes are given as {part}. Say which are in it, as a mask or by their "
                f"numbers; a Data of PyTorch Geometric says so by {part}_mask."
            )
    sets = {
        part: _nodes(nodes, len(features), f"{name}: {part}")
        for part, nodes in given.items()
        if nodes is not None
    }
    _check_apart(sets, name)
    label, num_classes, names = _labels(y, sets, len(features), num_classes, class_names, name)
    known = label[sets["train"]]
    check_classes(known.bincount(minlength=num_classes).tolist())
    missing = (known.bincount(minlength=num_classes) == 0).nonzero().flatten().tolist()
    if missing:
        what = missing[0] if names is None else repr(names[missing[0]])
        has_others = bool((label[torch.cat(list(sets.values()))] == missing[0]).any())
        raise DataError(
            f"{name}: no node in train has the class {what}, "
            + (
                "which others have. Put one of them into train"
                if has_others
                else "and no other has"
            )
            + ", or leave that class out."
        )
    whole = Batch(
        features,
        {"label": label},
        structure={"edge_index": edges, "known": sets["train"], "known_label": known},
    )
    batches = {
        part: whole.replace(index=nodes, structure={**whole.structure, "asked": nodes})
        for part, nodes in sets.items()
    }
    return Dataset(
        name=name,
        training=batches["train"],
        validation=batches.get("validation"),
        test=batches["test"],
        num_classes=num_classes,
        class_names=names,
        has_own_test=True,
    )


def features_of(x: Numbers, name: str) -> Tensor:
    """Return features of nodes, checked: float32, shape (nodes, features)."""
    if x is None:
        raise DataError(
            f"{name}: nodes have no features. Give some as x, shape (nodes, features): the degrees "
            f"of the nodes, or a row of an identity matrix for each."
        )
    # Small whole numbers are counts here, and no pixels.
    features = samples(x, f"{name}: x").float()
    if features.ndim != 2:
        raise DataError(
            f"{name}: x has the shape {tuple(features.shape)}. Nodes have vectors of features: the "
            f"shape is (nodes, features)."
        )
    return features


def edges_of(
    edge_index: Numbers, nodes: int, name: str, *, undirected: bool
) -> Int[Tensor, "2 edges"]:
    """Return edges, checked; where `undirected`, each once in both directions."""
    if edge_index is None:
        raise DataError(f"{name}: there is no edge_index. Give the edges, shape (2, edges).")
    array = real(edge_index, f"{name}: edge_index")
    if array.ndim != 2 or array.shape[0] != 2:
        turned = ", and this looks transposed: give edge_index.T" if array.shape[1:] == (2,) else ""
        raise DataError(
            f"{name}: edge_index has the shape {array.shape}, and (2, edges) is needed{turned}."
        )
    # Tables hold whole numbers as float64, which keeps them; smaller types would round them.
    is_whole = array.dtype == np.float64 and bool((array == np.floor(array)).all())
    if array.dtype.kind not in "iu" and array.size and not is_whole:
        raise DataError(
            f"{name}: edge_index is of type {array.dtype}, and holds numbers of nodes: whole "
            f"numbers from 0."
        )
    found = torch.from_numpy(np.array(array, dtype=np.int64))
    wrong = ((found < 0) | (found >= nodes)).any(dim=0).nonzero().flatten()
    if len(wrong):
        first = found[:, wrong[0]].tolist()
        raise DataError(
            f"{name}: {len(wrong)} of {found.shape[1]:,} edges are of nodes that do not exist; the "
            f"first, edge {int(wrong[0])}, goes from {first[0]} to {first[1]}. There are {nodes:,} "
            f"nodes, counted from 0."
        )
    if undirected:
        found = torch.cat([found, found.flip(0)], dim=1).unique(dim=1)
    # By the nodes they go to, so that those of a node are found at once.
    return found[:, found[1].argsort(stable=True)]


def warn_of_edge_features(data: Any, name: str) -> None:
    """Warn of weights and features of the edges of a `Data`, which nothing here reads."""
    found = [part for part in ("edge_weight", "edge_attr") if getattr(data, part, None) is not None]
    if found:
        warnings.warn(
            f"{name}: {' and '.join(found)} of the graph have no effect: all edges count the same.",
            OnwardWarning,
            stacklevel=3,
        )


def _warn_of_one_way(edges: Int[Tensor, "2 edges"], nodes: int, name: str) -> None:
    """Warn of edges that go one way only."""
    codes = edges[0] * nodes + edges[1]
    lonely = ~torch.isin(edges[1] * nodes + edges[0], codes)
    if lonely.any():
        warnings.warn(
            f"{name}: {int(lonely.sum()):,} of {len(codes):,} edges go one way only, and messages "
            f"with them. If edges have no direction, edge_index in a file must hold both; in "
            f"Python, undirected=True adds the other. If they have one, undirected=False says so.",
            OnwardWarning,
            stacklevel=3,
        )


def _nodes(given: Numbers | range, nodes: int, what: str) -> Int[Tensor, " chosen"]:
    """Return the numbers of the nodes of a set, in ascending order."""
    given = list(given) if isinstance(given, range) else given
    array = np.asarray(real(given, what)) if not _is_mask(given) else np.asarray(given)
    if array.ndim != 1:
        several = " It looks like several splits: choose one, such as train_mask[:, 0]."
        raise DataError(
            f"{what} has the shape {array.shape}, and is a mask of shape ({nodes},), or the "
            f"numbers of nodes.{several if array.ndim == 2 else ''}"
        )
    if array.dtype == bool:
        if len(array) != nodes:
            raise DataError(f"{what} is a mask of {len(array)} nodes, and there are {nodes}.")
        array = array.nonzero()[0]
    elif array.dtype.kind not in "iu" and array.size:
        raise DataError(
            f"{what} is of type {array.dtype}, and is a mask, or the numbers of nodes as whole "
            f"numbers from 0."
        )
    found, counts = np.unique(array.astype(np.int64), return_counts=True)
    if not len(found):
        raise DataError(f"{what} has no nodes.")
    if found[0] < 0 or found[-1] >= nodes:
        wrong = found[0] if found[0] < 0 else found[-1]
        raise DataError(f"{what} has node {wrong}, and there are {nodes:,}, counted from 0.")
    if counts.max() > 1:
        is_mask = len(array) == nodes and found[-1] == 1
        hint = " If it is a mask, give it as one: mask.astype(bool)." if is_mask else ""
        raise DataError(f"{what} has node {found[counts.argmax()]} more than once.{hint}")
    return torch.from_numpy(found)


def _is_mask(given: Numbers) -> bool:
    try:
        return np.asarray(given).dtype == bool
    except ValueError:
        return False


def _check_apart(sets: dict[str, Tensor], name: str) -> None:
    for place, (part, nodes) in enumerate(sets.items()):
        for other in list(sets)[:place]:
            both = nodes[torch.isin(nodes, sets[other])]
            if len(both):
                raise DataError(
                    f"{name}: {len(both)} nodes are in {other} and in {part}, the first of them "
                    f"{int(both[0])}. A node is in one set at most."
                )


def _labels(
    y: Numbers,
    sets: dict[str, Tensor],
    nodes: int,
    num_classes: int | None,
    class_names: Sequence[str] | None,
    name: str,
) -> tuple[Tensor, int, tuple[str, ...] | None]:
    """Return the class of each node, 0 where it is in no set; the number of classes; names."""
    named = as_names(y, f"{name}: y")
    array = np.asarray(real(y, f"{name}: y") if named is None else named)
    if array.shape != (nodes,):
        hint = " Give y[:, 0]." if array.shape == (nodes, 1) else ""
        raise DataError(
            f"{name}: y has the shape {array.shape}, but there are {nodes} nodes and each needs "
            f"one class: the shape must be ({nodes},).{hint}"
        )
    used = torch.cat(list(sets.values())).sort().values
    found, num_classes, names = read_labels(
        {"y": (array[used.numpy()], len(used))},
        num_classes,
        class_names,
        name,
        allow_one_class=False,
    )
    label = torch.zeros(nodes, dtype=torch.int64)
    label[used] = found["y"]
    return label, num_classes, names


def node_split(nodes: int, number: int) -> dict[str, NDArray[np.int64]]:
    """Split nodes into 64 % to train with, 16 % for validation and 20 % for the test.

    One of five splits, whose tests do not overlap. Classes are not looked at.

    Args:
        nodes: How many there are.
        number: Which split, from 0 to 4.

    Source:
        Park et al. 2024, arXiv:2403.11004 (ForwardGNN); theirs, node by node.

    Example:
        >>> {part: len(found) for part, found in node_split(100, 0).items()}
        {'train': 64, 'validation': 16, 'test': 20}
    """
    from sklearn.model_selection import KFold, train_test_split  # Takes a second.

    if not 0 <= number < SPLITS or nodes < SPLITS:
        raise DataError(
            f"A graph without sets of its own, of {SPLITS} nodes or more, is split in one of "
            f"{SPLITS} ways, by data.split_seed from 0 to {SPLITS - 1}; got {nodes} nodes and "
            f"{number}."
        )
    folds = KFold(SPLITS, shuffle=True, random_state=101).split(np.arange(nodes))
    rest, test = list(folds)[number]
    train, validation = train_test_split(rest, test_size=0.2, random_state=127 * number)
    return {"train": np.sort(train), "validation": np.sort(validation), "test": test}


def is_graph_file(path: Path) -> bool:
    """Return whether an .npz file has the edges of a graph."""
    try:
        with ZipFile(path) as file:
            return "edge_index.npy" in file.namelist()
    except Exception:  # What damaged archives raise has no common base; loading says what it is.
        return False


def read_members_of_graph(path: Path) -> dict[str, Any]:
    """Read the members of a graph from an .npz file, none of which is ever unpickled.

    Args:
        path: See `read_graph`; here `y` may be missing.

    Raises:
        DataError: The file is missing or damaged.
    """
    optional = ("y", "x", *FEATURES_CSR, *SETS, "num_classes", "class_names")
    members: dict[str, Any] = dict(read_members(path, ("edge_index",), optional, is_ours=True))
    if "x" not in members:
        lacking = [member for member in FEATURES_CSR if member not in members]
        if lacking:
            raise DataError(
                f"{path} lacks x. Features are a member x, or {', '.join(FEATURES_CSR)} of a "
                f"sparse matrix."
            )
        data, indices, indptr, shape = (members.pop(member) for member in FEATURES_CSR)
        try:
            members["x"] = scipy.sparse.csr_array((data, indices, indptr), shape=tuple(shape))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path}: the sparse matrix of features is damaged: {error}."
            ) from error
    return members


def read_graph(path: Path, split_seed: int, name: str | None = None) -> Dataset:
    """Read a graph from an .npz file.

    Args:
        path: A file with the members `edge_index` and `y`; `x`, or `x_data`, `x_indices`,
            `x_indptr` and `x_shape` of a sparse matrix; and, as they are known, `train`,
            `validation` and `test`, and `class_names`. See `graph` for what each holds.
        split_seed: Which split of `node_split` it gets, where it has no sets.
        name: What it is called; None: as the file.

    Raises:
        DataError: The file is missing or damaged, or its members do not fit.
    """
    members = read_members_of_graph(path)
    if "y" not in members:
        raise DataError(
            f"{path} lacks y, the class of each node. Without classes, forwardgnn-links learns "
            f"which nodes are linked."
        )
    if not any(part in members for part in SETS):
        members |= node_split(len(members["y"]), split_seed)
    elif split_seed:
        warnings.warn(
            f"data.split_seed = {split_seed} has no effect: {path} says which nodes are in which "
            f"set.",
            OnwardWarning,
            stacklevel=2,
        )
    num_classes = members.pop("num_classes", None)
    names = members.pop("class_names", None)
    return graph(
        **members,
        num_classes=None if num_classes is None else int(num_classes),
        class_names=None if names is None else [str(each) for each in names],
        name=name or path.name,
    )
