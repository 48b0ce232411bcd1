"""Arguments: what a user hands over is held against the types that a function is written with."""

import types
import typing
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args, get_origin

from onward.errors import SettingError

TAKES = {
    "allow_one_class": "True or False",
    "augment": "a function of a batch and a generator, such as ow.Translate(2), or several",
    "class_weights": "'balanced', a number between 0 and 1, or None",
    "blocks": "a list of ow.Block",
    "config": "an ow.RunConfig, such as ow.RunConfig(recipe='hinton'), or of a recipe of your own "
    "ow.RunConfig(method=recipe)",
    "context": "a whole number of bytes",
    "data": "an ow.DataConfig, such as ow.DataConfig(name='mnist')",
    "data_dir": "a path",
    "dataset": "an ow.Dataset: ow.dataset(x, y) makes one of arrays, tensors or tables, "
    "ow.dataset(loader) of a Dataset or DataLoader of torch, and "
    "ow.Dataset(training=ow.Batch(x, {'label': y}), ...) of batches",
    "folder": "a path",
    "input_shape": "a tuple of whole numbers, such as (1, 28, 28)",
    "head": "a module, such as nn.Linear(units, num_classes)",
    "is_image": "True or False",
    "label": "the name of a column, or the path of an .npy file",
    "labelled": "a fraction of the training samples, above 0 and up to 1",
    "links": "True or False",
    "listener": "an ow.Listener, such as ow.CSVLog('training.csv') or a class of your own whose "
    "methods are called, such as progress; or several",
    "method": "a recipe, such as ow.load_recipe('FILE.py:FUNCTION')",
    "module": "an nn.Module, such as nn.Linear(inputs, units); several go into an nn.Sequential",
    "name": "a text, such as 'mnist'",
    "network": "an ow.Network; ow.train also takes stages, [ow.Stage(network=...), ...]",
    "num_classes": "a whole number",
    "objective": "an ow.Objective, such as ow.CrossEntropy(nn.Linear(units, num_classes))",
    "optimizer": "an optimizer of Onward, such as ow.Adam(lr=1e-3), or of torch as "
    "ow.optimizer(torch.optim.Adam, lr=1e-3), or a dict from names of parameters to these",
    "pflop": "a number of PFLOP, 1e15 operations",
    "placement": "an ow.PlacementConfig, such as ow.PlacementConfig(name='all-layers'), or an "
    "ow.Placement of your own",
    "plan": "an ow.PlanConfig, such as ow.PlanConfig(kind='stream')",
    "policy": "an ow.ExitPolicy; what ow.calibrate returns has it as its `policy`",
    "prepare": "a function",
    "preprocessing": "an ow.Preprocessing",
    "prompt": "bytes, such as b'def ' or text.encode()",
    "readout": "an ow.Readout, such as ow.SumOfHeads()",
    "readouts": "a dict of ow.Readout by name",
    "reads": "a tuple of numbers of blocks, 'input' and ow.Edge, such as (0,) or ('input', 1)",
    "recipe": "the name of a recipe",
    "recipes": "a list of recipes, run files and folders of runs, such as ['one-pass', 'pff']",
    "sampler": "an ow.Sampler, such as ow.Plain()",
    "schedule": "a name such as 'cosine', or a function that maps progress, from 0 to 1, to a "
    "factor on the learning rate",
    "seeds": "a whole number",
    "settings": "a dict of settings by full name, such as {'training.epochs': 5}",
    "shift": "a whole number of pixels",
    "source": "the number of a block, or 'input'",
    "split_seed": "a whole number",
    "standardize": "one of 'auto', 'feature', 'channel', 'none'",
    "structure": "a tuple of names, such as ('links',)",
    "test": "a fraction below 1, or a number of samples",
    "ticks": "a whole number",
    "training": "an ow.TrainingConfig, such as ow.TrainingConfig(epochs=5)",
    "validation": "a fraction below 1, or a number of samples",
    "widths": "a tuple of whole numbers, such as (500, 500)",
}
"""What arguments of each name are, for messages."""


def check_arguments(
    function: Callable[..., object], given: Mapping[str, Any], *, called: str | None = None
) -> None:
    """Refuse arguments of other types than a function, or a dataclass, is written with.

    Args:
        function: Has annotations.
        given: Its arguments by name, such as `locals()`; what has no annotation is left out.
        called: What a user knows the function as. None: by its own name.

    Raises:
        SettingError: One is of another type.
    """
    for name, kind in typing.get_type_hints(function).items():
        if name in given and not fits(given[name], kind):
            owner = called or function.__qualname__.removesuffix(".__init__")
            raise SettingError(
                f"ow.{owner}: {name} must be {TAKES.get(name, kind)}; got {said(given[name])}."
            )


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type. A list is taken for a tuple, a number of numpy for one.

    Example:
        >>> fits([1, 2], tuple[int, ...]), fits("links", tuple[str, ...])
        (True, False)
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Annotated:
        return fits(value, inner[0])
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return isinstance(value, str | int) and value in inner
    if origin is None:
        if isinstance(value, bool) and kind in (int, float):
            return False
        return isinstance(value, {int: Integral, float: Real}.get(kind, kind))
    if issubclass(origin, Mapping):
        keys, values = inner
        return isinstance(value, Mapping) and all(
            fits(key, keys) and fits(each, values) for key, each in value.items()
        )
    if origin is Callable:
        return callable(value) and not isinstance(value, type)
    is_several = hasattr(type(value), "__getitem__") and not isinstance(value, str | Mapping)
    return is_several and all(fits(each, inner[0]) for each in value)


def said(value: Any) -> str:
    """Say what was given."""
    if value is None or isinstance(value, str | Real):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance"
    if isinstance(value, list | tuple | dict) and len(value):
        inside = value.values() if isinstance(value, dict) else value
        return f"a {type(value).__name__} that holds {', '.join(dict.fromkeys(map(said, inside)))}"
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return f"the function {name}"
    library = type(value).__module__.partition(".")[0]
    known = f" of {library}" if library not in ("builtins", "__main__", "onward") else ""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}{known}"
