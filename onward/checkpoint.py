"""A trained network as a file: named arrays in safetensors, all else as JSON in its header."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onward.arguments import fits
from onward.config import check_same, no_recipe
from onward.data import DataInfo
from onward.data.inputs import InputTransformation
from onward.digests import tensors_sha256
from onward.errors import FileError, MisfitError, OnwardWarning
from onward.files import atomic_write
from onward.network.blocks import Block
from onward.network.layers import Dense
from onward.network.networks import Network
from onward.network.trained_on import TrainedOn
from onward.network.unsaved import unsaved
from onward.recipes import BUILT_IN, Recipe
from onward.recipes.blueprint import Blueprint, build
from onward.recipes.dense import dense
from onward.settings import NetworkConfig
from onward.values import changed, kinds
from onward.version import VERSION

FORMAT = 3
"""Version of the layout of model files; newer ones are refused."""

INPUTS = "inputs."
"""How the names of arrays of the input transformation begin."""

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
"""How images and filters lie in memory, by its name in settings and files."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Arithmetic of matrix products, by its name in settings and files."""


def shipped(network: Network) -> dict[str, Tensor]:
    """Return what inference needs, by name: parameters, buffers, heads, inputs."""
    inputs = network.inputs.arrays
    return _weights(network) | {f"{INPUTS}{name}": tensor for name, tensor in inputs.items()}


def _weights(network: Network) -> dict[str, Tensor]:
    """Return the arrays whose shapes a network knows before it is read."""
    own = network.preprocessing.state_dict() if network.preprocessing is not None else {}
    return {f"preprocessing.{name}": tensor for name, tensor in sorted(own.items())} | {
        f"blocks.{number}.{name}": tensor
        for number, block in enumerate(network.all_blocks)
        for name, tensor in sorted(block.shipped().items())
    }


def weights_sha256(network: Network) -> str:
    """Return a digest of the names, shapes, types and bytes of all that inference needs."""
    return tensors_sha256(shipped(network))


def save(network: Network, path: Path | str) -> None:
    """Write a network to a safetensors file, whole or not at all.

    The header holds, as JSON under the key `onward`, the version of the format, the settings the
    network was built from, and per block what its scores depend on: input normalisation,
    threshold and slope.

    Raises:
        FileError: The file cannot be written.
    """
    path = Path(path)
    precision = next(n for n, p in PRECISIONS.items() if p is network.all_blocks[0].precision)
    layout = next(n for n, known in MEMORY_FORMATS.items() if known is network.memory_format)
    blueprint = network.blueprint
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "precision": precision,
        "memory_format": layout,
        "blueprint": blueprint.to_json() if blueprint else None,
        "trained_on": network.trained_on.to_json() if network.trained_on else None,
        "blocks": [_describe(block) for block in network.all_blocks],
        "modules": None if blueprint else _modules(network),
        "reading": _reading(network),
        "inputs": network.inputs.to_json(),
        "class_names": network.class_names,
        "weights_sha256": weights_sha256(network),
        "unsaved": unsaved(network, _weights(network).values()),
    }
    header["header_sha256"] = _header_digest(header)
    # Clones, since safetensors refuses tensors that share memory.
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in shipped(network).items()}
    try:
        with atomic_write(path) as partial:
            # safetensors makes files for their owner alone; this one is as others are.
            partial.touch()
            mode = partial.stat().st_mode
            save_file(tensors, partial, metadata={"onward": json.dumps(header)})
            partial.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise FileError(f"The model cannot be written to {path}: {error}.") from error


def load(
    path: Path | str,
    network: Network | None = None,
    *,
    recipe: Recipe | None = None,
    may_differ: bool = False,
) -> Network:
    """Read a network from a file that `save` has written. Nothing in it is executed.

    The network predicts as before; to train it further, give it an optimizer of your own. Warns if
    a network that no recipe has built has other modules than that of the file.

    Args:
        path: The file, or the folder of a run.
        network: Takes the weights. Needed for networks that no recipe has built.
        recipe: The recipe that has built it, where that does not come with Onward: what
            `onward.load_recipe("FILE.py:FUNCTION")` returns.
        may_differ: Whether its file may have been edited since.

    Raises:
        FileError: The file is missing, damaged, newer than this version, or does not fit; the
            network is then as it was.
        SettingError: The recipe fails.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        advice = "A finished run has a model.safetensors."
        if (path.parent / "state").is_dir():
            advice = (
                f"The run is not finished. Resume it with onward train --resume {path.parent}, or "
                f"start its script again."
            )
        raise FileError(f"There is no model at {path}. {advice}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise FileError(f"The model file {path} cannot be read: {error.strerror}.") from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata.get("onward", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise FileError(f"The model file {path} is damaged: {error}.") from error
    _check_header(path, header)
    if network is None:
        network = _rebuild(path, header, recipe, may_differ=may_differ)
    elif header.get("reading", _reading(network)) != _reading(network):
        raise FileError(
            f"The model file {path} does not fit the network: it was read by {header['reading']}, "
            f"and this one is read by {_reading(network)}."
        )
    wanted = _weights(network)
    weights = {name: t for name, t in tensors.items() if not name.startswith(INPUTS)}
    _check_tensors(path, weights, wanted)
    if tensors_sha256(tensors) != header["weights_sha256"]:
        raise FileError(f"The model file {path} is damaged: its weights do not have its checksum.")
    try:
        inputs = _read_inputs(header, tensors, network)
        found = header.get("trained_on")
        trained_on = TrainedOn.from_json(found) if found else None
        names = header.get("class_names")
        if names is not None and not fits(names, list[str]):
            raise ValueError(f"class_names is {names!r}")
        if names is not None and len(names) != network.num_classes:
            raise ValueError(f"{len(names)} class_names, {network.num_classes} classes")
        known = header.get("modules")
        if known is not None and not fits(known, list[str]):
            raise ValueError(f"modules is {known!r}")
        beside = header.get("unsaved", {})
        if not fits(beside, dict[str, str]):
            raise ValueError(f"unsaved is {beside!r}")
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise FileError(f"The model file {path} is damaged: {error!r}.") from error
    _check_unsaved(path, beside, unsaved(network, wanted.values()))
    with torch.no_grad():
        for name, tensor in weights.items():
            wanted[name].copy_(tensor)
    network.set_precision(PRECISIONS[header["precision"]])
    network.set_memory_format(MEMORY_FORMATS[header.get("memory_format", "contiguous")])
    network.eval()
    network.inputs, network.trained_on = inputs.to(network.device), trained_on
    network.class_names = None if names is None else tuple(names)
    if network.preprocessing is not None:
        network.preprocessing.set_extra_state(weights["preprocessing._extra_state"])
    if known is not None:
        _warn_of_other_modules(path, known, _modules(network))
    return network


def _read_inputs(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor], network: Network
) -> InputTransformation:
    """Return the input transformation; older files know only that uint8 is divided by 255."""
    if header["format"] < 3:
        known = network.blueprint
        return InputTransformation("older", known.data.input_shape if known else None)
    names = {f"{INPUTS}mean", f"{INPUTS}std"}
    if {name for name in tensors if name.startswith(INPUTS)} - names:
        raise ValueError(f"it has other arrays of inputs than {', '.join(sorted(names))}")
    arrays = [tensors.get(name) for name in sorted(names)]
    return InputTransformation.from_json(header["inputs"], *arrays)


def _header_digest(header: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in header.items() if name != "header_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _check_header(path: Path, header: Any) -> None:
    known = isinstance(header, dict) and isinstance(header.get("format"), int)
    if not known:
        raise FileError(f"The file {path} was not written by onward: it has no onward header.")
    if header["format"] > FORMAT:
        raise FileError(
            f"The model file {path} has format {header['format']}, and this version of onward "
            f"reads up to {FORMAT}. Install onward {header.get('version')} or newer."
        )
    if header.get("header_sha256") != _header_digest(header):
        raise FileError(f"The model file {path} is damaged: its header does not have its checksum.")
    is_known = header.get("precision") in list(PRECISIONS)
    is_known &= header.get("memory_format", "contiguous") in list(MEMORY_FORMATS)
    if not is_known or "weights_sha256" not in header:
        raise FileError(f"The model file {path} is damaged: its header is not complete.")


def _rebuild(
    path: Path, header: dict[str, Any], recipe: Recipe | None, *, may_differ: bool
) -> Network:
    blueprint = header.get("blueprint")
    if blueprint is None:
        raise FileError(
            f"The model file {path} holds a network that no recipe has built. Build it as before "
            f"and pass it: onward.load(path, network), or network=network to onward.evaluate, "
            f"calibrate, answer and export."
        )
    if header["format"] == 1:
        known = {name: value for name, value in blueprint.items() if name != "config"}
        blueprint = {"recipe": dense.name, "settings": blueprint.get("config"), "data": known}
    name = str(blueprint.get("recipe"))
    if recipe is not None:
        check_same(recipe, name, blueprint.get("recipe_sha256"), may_differ=may_differ)
    elif name in BUILT_IN:
        recipe = BUILT_IN[name]
    else:
        if ":" not in name:
            raise FileError(f"The model file {path} names its recipe. {no_recipe(name)}")
        raise FileError(
            f"The model file {path} is of the recipe {name}, which does not come with Onward, and "
            f"files do not name code that is run. Load its recipe and pass it: onward.load(path, "
            f'recipe=onward.load_recipe("{name}")); on the command line, --recipe {name}, with the '
            f"path of its file."
        )
    try:
        own = _current(blueprint["settings"], kinds(recipe.settings))
        settings = changed(recipe.settings(), own, "network")
        data = DataInfo(
            input_shape=tuple(int(n) for n in blueprint["data"]["input_shape"]),
            num_classes=int(blueprint["data"]["num_classes"]),
            is_image=bool(blueprint["data"]["is_image"]),
            structure={
                str(name): tuple(map(int, shape))
                for name, shape in blueprint["data"].get("structure", {}).items()
            },
        )
        found = Blueprint(recipe, settings, data, int(blueprint.get("stage", -1)))
        seed = int(blueprint.get("seed", 0))
        if isinstance(settings, NetworkConfig):
            _check_size(path, settings, data)
        if recipe.name in BUILT_IN:
            return build(found, seed=seed)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FileError(f"The model file {path} describes no known network: {error}.") from error
    # What fails in a user's code is not the file's fault.
    return build(found, seed=seed)


def _current(settings: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a model file as they are called now.

    Older files hold how the network was trained among what it is.
    """
    own = dict(settings)
    for name in {"lr", "weight_decay", "optimizer"} - known.keys():
        own.pop(name, None)
    if "one_block" in own.keys() - known.keys():
        own["layers_per_block"] = "all" if own.pop("one_block") else 1
    if own.get("layers_per_block") == "one" and "one" not in get_args(known["layers_per_block"]):
        own["layers_per_block"] = 1
    if "heads" in own.keys() - known.keys() and "attention_heads" in known:
        own["attention_heads"] = own.pop("heads")
    return own


def _check_size(path: Path, settings: NetworkConfig, data: DataInfo) -> None:
    """Hold what a blueprint announces against the file before memory is taken for it."""
    room = path.stat().st_size
    weights = sum(inputs * units for inputs, units in pairwise((data.num_inputs, *settings.widths)))
    if 4 * weights > room or data.num_classes > room:
        raise ValueError(f"it has {weights} weights, and the file {room} bytes")


def _check_tensors(path: Path, tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    if tensors.keys() != wanted.keys():
        odd = sorted(tensors.keys() ^ wanted.keys())
        raise MisfitError(
            f"The model file {path} does not fit the network: {len(odd)} names are on one side "
            f"only, {odd[0]} first."
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            raise MisfitError(
                f"The model file {path} does not fit the network: {name} has shape "
                f"{tuple(tensor.shape)} and type {tensor.dtype}, expected "
                f"{tuple(wanted[name].shape)} and {wanted[name].dtype}."
            )


def _check_unsaved(path: Path, known: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Warn of a network whose plain attributes are others than those it was trained with."""
    # What is there on one side only is a cache, filled by use.
    for name, digest in known.items():
        if own.get(name, digest) != digest:
            warnings.warn(
                f"The network may not be as it was when {path} was saved: {name} has other values. "
                f"It is in a plain attribute, which no file holds. If answers depend on it, make "
                f"it a buffer (register_buffer) or a submodule of a module that is, or draw it "
                f"from a generator with a seed of its own, torch.Generator().manual_seed(0); then "
                f"train again.",
                OnwardWarning,
                stacklevel=3,
            )


def _reading(network: Network) -> str:
    """Return how classes are read off a network: what decides them beside weights."""
    readout = network.readout
    name = repr(readout) if is_dataclass(readout) else type(readout).__name__
    return f"{name}, {network.ticks} ticks"


def _modules(network: Network) -> list[str]:
    """Return what torch prints of each block that inference needs, without addresses in memory."""
    found = []
    for block in network.all_blocks:
        scored = [block.objective] if block.objective.has_scores else []
        text = "\n".join(map(repr, [block.module, *scored]))
        # Nor what inference does not need: where it is, and what is dropped in training.
        text = re.sub(r" at 0x[0-9a-fA-F]+| \((GPU |cuda:)\d+\)|(?<=Dropout\()p=[^,)]*", "", text)
        found.append("\n".join(line for line in text.splitlines() if line.strip() != ")"))
    return found


def _warn_of_other_modules(path: Path, known: list[str], own: list[str]) -> None:
    for number, texts in enumerate(zip_longest(known, own, fillvalue="")):
        for was, now in zip_longest(*(text.splitlines() for text in texts), fillvalue="nothing"):
            if was != now:
                warnings.warn(
                    f"The network is not that of the model file {path}, though the weights fit: "
                    f"block {number} has {now.strip()}, and that of the file {was.strip()}. Its "
                    f"predictions may differ. Build it as it was when it was saved.",
                    OnwardWarning,
                    stacklevel=3,
                )
                return


def _describe(block: Block) -> dict[str, Any]:
    found: dict[str, Any] = {"objective": type(block.objective).__name__}
    if any(isinstance(part, Dense) for part in block.module.modules()):
        found["input_normalization"] = "mean square 1"
    return found | block.objective.describe()
