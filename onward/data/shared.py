"""A data set as a file that several processes of a machine read, in memory that they share."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from onward.batch import Batch
from onward.data.dataset import Dataset
from onward.data.mapped import whole


def write_shared(dataset: Dataset, path: Path) -> None:
    """Write a data set, its validation samples held out, for processes that this one starts.

    Raises:
        OSError: It cannot be written.
    """
    batches = {"training": dataset.training, "validation": dataset.validation, "test": dataset.test}
    tensors: dict[str, Tensor] = {}
    known: set[int] = set()
    for part, batch in batches.items():
        for name, given in (batch.tensors() if batch is not None else {}).items():
            tensor = whole(given)
            memory = tensor.untyped_storage().data_ptr()
            # safetensors refuses tensors that share memory, as parts of one graph do.
            tensors[f"{part}.{name}"] = (
                tensor.contiguous().clone() if memory in known else tensor.contiguous()
            )
            known.add(memory)
    header = {
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "class_names": dataset.class_names,
        "feature_names": dataset.feature_names,
        "is_image": dataset.is_image,
        "digest": dataset.sha256(),
        "held_out_digest": dataset.held_out_sha256(),
    }
    save_file(tensors, path, metadata={"dataset": json.dumps(header)})


def read_shared(path: Path) -> Dataset:
    """Read what `write_shared` has written; pages are read as they are needed, once a machine."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["dataset"])
        for name in ("class_names", "feature_names"):
            header[name] = header[name] and tuple(header[name])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def batch(part: str) -> Batch:
        prefix = f"{part}."
        return Batch.from_tensors(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )

    return Dataset(
        training=batch("training"), validation=batch("validation"), test=batch("test"), **header
    )
