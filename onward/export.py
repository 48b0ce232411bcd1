"""Trained networks as ONNX files, one a stage, for inference without torch; extra `export`."""

import contextlib
import importlib.util
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
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
from onward.exits.policies import ExitPolicy
from onward.exits.stages import head_weights, shared_pass, stages
from onward.layers import Dense, normalize_length
from onward.networks import Network
from onward.readouts import GoodnessSweep, SoftmaxHead, SumOfHeads
from onward.views import LabelEmbedding

FORMAT = 1
"""Version of the layout of the folder."""

MANIFEST = "manifest.json"
"""What the files of a folder are, and when a row leaves."""

WHOLE = "network.onnx"
"""All stages as one graph."""

PROGRAM = "infer.py"
"""What runs them."""

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


class Whole(nn.Module):
    """All stages as one graph, which ends where its one row is sure enough.

    Args:
        network: The network, which is read in one pass.
        stages: Its stages, in order.
        policy: When inference stops.
    """

    def __init__(self, network: Network, stages: Sequence[Stage], policy: ExitPolicy) -> None:
        super().__init__()
        self.stages, self.policy = nn.ModuleList(stages), policy
        self.adds, self.num_classes = adds(network, len(stages)), network.num_classes
        self.is_softmax = isinstance(network.readout, SoftmaxHead)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        none = x.new_zeros(1, self.num_classes)
        return self._from(0, x, none, x.new_zeros(0, 1, self.num_classes))

    def _from(
        self, number: int, x: Tensor, total: Tensor, history: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, found = self.stages[number](x)
        raw = found + total if self.adds[number] else found
        scores = raw.log_softmax(dim=1) if self.is_softmax else raw
        history = torch.cat([history, scores[None]])
        if number == len(self.stages) - 1:
            return scores, torch.full((1,), number)

        def leave(x: Tensor, raw: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
            return history[-1].clone(), torch.full((1,), number)

        def go_on(x: Tensor, raw: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
            return self._from(number + 1, x, raw, history)

        is_sure = self.policy.confidences(history)[0] >= self.policy.thresholds[number]
        ended: tuple[Tensor, Tensor] = torch.cond(is_sure, leave, go_on, (x, raw, history))
        return ended


def export_whole(network: Network, path: Path, policy: ExitPolicy) -> None:
    """Write a network as one ONNX file with conditions, for one row at a time.

    Its input `x` has shape (1, inputs...); its outputs are `scores`, shape (1, classes), and
    `exit`, the stage at which inference stopped.

    Args:
        network: See `export`; not one that is read by a sweep over labels.
        path: The file.
        policy: When inference stops.

    Raises:
        SettingError: A package is missing, or the network cannot be exported so.
        FileError: The file cannot be written.
    """
    if isinstance(network.readout, GoodnessSweep):
        raise SettingError(
            "A sweep over labels is not written as one graph: which labels are passed on depends "
            "on the row. Leave --one-graph out: the files of the stages do."
        )
    row, parts = _checked(network, policy)
    whole = Whole(network, [Stage(network, blocks).eval() for blocks in parts], policy).eval()
    try:
        with _quiet():
            program = torch.onnx.export(
                whole,
                (row[:1],),
                input_names=["x"],
                output_names=["scores", "exit"],
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        program.save(path, external_data=False)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror}.") from error


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
    row, parts = _checked(network, policy)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        files, x = [], row
        for number, blocks in enumerate(parts):
            stage = Stage(network, blocks).eval()
            files.append(folder / f"stage-{number}.onnx")
            _write(stage, x, files[-1])
            if int8:
                _quantize(files[-1])
            with torch.no_grad():
                x, _ = stage(x)
        (folder / MANIFEST).write_text(json.dumps(_manifest(network, policy, files), indent=2))
        shutil.copyfile(RUNTIME, folder / PROGRAM)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"The folder {folder} cannot be written to: {error.strerror}.") from error
    return files


def _clear(folder: Path) -> None:
    """Remove what an earlier export has left in a folder, and refuse one of other things.

    Raises:
        FileError: It holds something else.
    """
    is_ours = (folder / MANIFEST).exists() and (folder / PROGRAM).exists()
    if any(folder.iterdir()) and not is_ours:
        raise FileError(f"The folder {folder} holds something else. Name another.")
    for name in ("stage-*.onnx", WHOLE, MANIFEST):
        for path in folder.glob(name):
            path.unlink()


def _checked(network: Network, policy: ExitPolicy) -> tuple[Tensor, list[range]]:
    """Return rows like those of a network, and the blocks of each stage.

    Raises:
        SettingError: A package is missing, or the network or the policy cannot be exported.
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
    return row, [range(a + 1, b + 1) for a, b in zip([-1, *exits], exits, strict=False)]


def run_exported(folder: Path, x: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return classes and exits of rows, as the files in a folder say."""
    from onward.standalone import Network as Exported

    return Exported(folder).answer(x)


def adds(network: Network, num_stages: int) -> list[bool]:
    """Return for each stage whether its scores are added to those of the next."""
    match network.readout:
        case SumOfHeads(heads=heads):
            return [heads == "all"] * num_stages
        case GoodnessSweep(skip_first=skip_first):
            return [number > 0 or not skip_first or num_stages == 1 for number in range(num_stages)]
    return [True] * num_stages


def _manifest(network: Network, policy: ExitPolicy, files: list[Path]) -> dict[str, object]:
    assert network.blueprint is not None
    names = {SoftmaxHead: "softmax", GoodnessSweep: "sweep"}
    return {
        "format": FORMAT,
        "stages": [file.name for file in files],
        "readout": names.get(type(network.readout), "heads"),
        "adds": adds(network, len(files)),
        "classes": network.num_classes,
        "input_shape": list(network.blueprint.input_shape),
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
