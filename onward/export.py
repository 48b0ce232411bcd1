"""Trained networks as ONNX files, one a stage, for inference without torch; extra `export`."""

import contextlib
import importlib.util
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onward.blocks import Block
from onward.checkpoint import weights_sha256
from onward.errors import FileError, SettingError
from onward.exits import ExitPolicy
from onward.layers import Dense, normalize_length
from onward.networks import Network
from onward.readouts import GoodnessSweep, SoftmaxHead, SumOfHeads
from onward.stages import head_weights, shared_pass, stages
from onward.views import LabelEmbedding

FORMAT = 1
"""Version of the layout of the folder."""

RUNTIME = Path(__file__).with_name("standalone.py")
"""What runs the files, copied beside them."""


class Stage(nn.Module):
    """From one exit to the next: activities in; activities, and what they add to the scores, out.

    Args:
        network: The network.
        blocks: The blocks of the stage, by number; the last is the exit.
    """

    def __init__(self, network: Network, blocks: range) -> None:
        super().__init__()
        self.sampler, self.numbers = network.sampler, blocks
        self.blocks = nn.ModuleList(network.line[number] for number in blocks)
        self.is_sweep = isinstance(network.readout, GoodnessSweep)
        self.weight = None
        if isinstance(network.readout, SoftmaxHead):
            self.weight = nn.Parameter(head_weights(network)[blocks[-1]].detach())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        block: Block
        for number, block in zip(self.numbers, self.blocks, strict=True):  # type: ignore[assignment]
            if number == 0 and self.is_sweep:
                assert isinstance(block.module, Dense)
                assert isinstance(self.sampler, LabelEmbedding)
                x = shared_pass(block.module, self.sampler, x)
            else:
                x = block.module(self.sampler.neutral(x) if number == 0 else x)
        if self.weight is not None:
            return x, nn.functional.linear(normalize_length(x), self.weight)
        return x, block.objective.scores(x)


def export(network: Network, folder: Path, policy: ExitPolicy, *, int8: bool = False) -> list[Path]:
    """Write a network as ONNX files, a manifest, and a program that runs them.

    The folder then holds `stage-0.onnx` and so on, `manifest.json`, and `infer.py`, which needs
    onnxruntime and numpy only.

    Args:
        network: A trained network that was built from settings. It is exported in fp32.
        folder: Where; it is made where it is missing.
        policy: When inference stops.
        int8: Whether weights are stored in eight bits, and activities rounded to eight as well.

    Returns:
        The files of the stages.

    Raises:
        SettingError: A package is missing, or the network cannot be exported.
        FileError: The folder cannot be written to.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise SettingError(
                f"ONNX files are written with {package}, which is not installed. Install it with:\n"
                f'    pip install "onward[export]"'
            )
    if network.blueprint is None:
        raise SettingError("Only networks that were built from settings are exported.")
    row = torch.zeros(2, *network.blueprint.input_shape)
    exits = stages(network, row).exits
    if len(policy.thresholds) != len(exits) - 1:
        raise SettingError(
            f"The policy has {len(policy.thresholds)} thresholds, and the network {len(exits)} "
            f"exits: one fewer is needed."
        )
    parts = [range(a + 1, b + 1) for a, b in zip([-1, *exits], exits, strict=False)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files, x = [], row
        for number, blocks in enumerate(parts):
            stage = Stage(network, blocks).eval()
            files.append(folder / f"stage-{number}.onnx")
            _write(stage, x, files[-1])
            if int8:
                _quantize(files[-1])
            with torch.no_grad():
                x, _ = stage(x)
        (folder / "manifest.json").write_text(
            json.dumps(_manifest(network, policy, files), indent=2)
        )
        shutil.copyfile(RUNTIME, folder / "infer.py")
    except OSError as error:
        raise FileError(f"The folder {folder} cannot be written to: {error.strerror}.") from error
    return files


def run_exported(folder: Path, x: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return classes and exits of rows, as the files in a folder say."""
    from onward.standalone import Network as Exported

    return Exported(folder).answer(x)


def _manifest(network: Network, policy: ExitPolicy, files: list[Path]) -> dict[str, object]:
    readout = network.readout
    name, adds = "heads", [isinstance(readout, SumOfHeads) and readout.heads == "all"] * len(files)
    if isinstance(readout, SoftmaxHead):
        name, adds = "softmax", [True] * len(files)
    if isinstance(readout, GoodnessSweep):
        skips = readout.skip_first and len(files) > 1
        name, adds = "sweep", [number > 0 or not skips for number in range(len(files))]
    return {
        "format": FORMAT,
        "stages": [file.name for file in files],
        "readout": name,
        "adds": adds,
        "classes": network.num_classes,
        "policy": policy.to_json(),
        "weights_sha256": weights_sha256(network),
    }


def _write(stage: Stage, x: Tensor, path: Path) -> None:
    """Write a stage as one file, for any number of rows."""
    rows = torch.export.Dim("rows", min=1)
    with _quiet():
        program = torch.onnx.export(
            stage,
            (x,),
            input_names=["x"],
            output_names=["activities", "scores"],
            dynamic_shapes=({0: rows},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


def _quantize(path: Path) -> None:
    """Store the weights of a stage in eight bits."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    # Shapes of what is in between would contradict those that it finds itself.
    del model.graph.value_info[:]
    onnx.save(model, path)
    with _quiet():
        quantize_dynamic(path, path, weight_type=QuantType.QInt8, per_channel=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what exporters say of their own progress and future."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
