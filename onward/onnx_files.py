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
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onward.batch import Batch
from onward.checkpoint import weights_sha256
from onward.errors import FileError, SettingError
from onward.exits.macs import Like, example
from onward.exits.policies import ExitPolicy
from onward.network.networks import Forward, Network, in_fp32

FORMAT = 3
"""Version of the layout of the folder."""

MANIFEST = "manifest.json"
"""What the files of a folder are, how their scores are added up, and when a sample leaves."""

WHOLE = "network.onnx"
"""All stages as one graph."""

PROGRAM = "infer.py"
"""What runs them."""

RUNTIME = Path(__file__).with_name("standalone.py")
"""What runs the files, copied beside them."""


class Stage(nn.Module):
    """From one exit to the next: activities in; activities, and what is found at the exit, out.

    Args:
        way: Samples at the beginning of the network.
        before: The exit before, by the number of its block; for the first stage, the input.
        exit_: The exit at the end of the stage.
    """

    def __init__(self, way: Forward, before: int | Literal["input"], exit_: int) -> None:
        super().__init__()
        self.way, self.before = way, before
        first = 0 if before == "input" else before + 1
        self.numbers = [number for number in way.needed if first <= number <= exit_]
        # All of them, since a readout may ask any; what a stage does not use is not written.
        self.blocks = nn.ModuleList(way.blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        way, outputs = self.way, Batch(x)
        if self.before == "input":
            outputs = way.network.transformed(outputs)
        seen = way.view(outputs) if self.before == "input" and way.first is None else outputs
        sources = {self.before: seen.inputs}
        for number in self.numbers:
            outputs = way.passed(number, lambda edge: sources[edge.source], seen)
            sources[number] = outputs.inputs
        found = way.readout.scores(way.blocks, way.network.edges, self.numbers[-1], outputs)
        return outputs.tensor, found

    def crossing(self) -> list[str]:
        """Return which blocks read what is neither in the stage nor handed to it, in words."""
        known = {*self.numbers, self.before}
        return [
            f"block {number} reads {edge.key} across the exit after block {self.before}"
            for number in self.numbers
            for edge in self.way.reads[number]
            if edge.source not in known
        ]


class Whole(nn.Module):
    """All stages as one graph, which ends where its one sample is sure enough.

    Args:
        way: A sample at the beginning of the network, which is read in one pass.
        stages: The stages, in order.
        policy: When inference stops.
    """

    def __init__(self, way: Forward, stages: Sequence[nn.Module], policy: ExitPolicy) -> None:
        super().__init__()
        self.stages, self.policy = nn.ModuleList(stages), policy
        self.fold, self.num_classes = way.fold, way.network.num_classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        none = x.new_zeros(1, self.num_classes)
        return self._from(0, x, none, x.new_zeros(0, 1, self.num_classes))

    def _from(
        self, number: int, x: Tensor, total: Tensor, history: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, found = self.stages[number](x)
        total, scores = self.fold.step(total, number, found)
        history = torch.cat([history, scores[None]])
        if number == len(self.stages) - 1:
            return scores, torch.full((1,), number)

        def leave(x: Tensor, total: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
            return history[-1].clone(), torch.full((1,), number)

        def go_on(x: Tensor, total: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
            return self._from(number + 1, x, total, history)

        is_sure = self.policy.confidences(history)[0] >= self.policy.thresholds[number]
        ended: tuple[Tensor, Tensor] = torch.cond(is_sure, leave, go_on, (x, total, history))
        return ended


def check_whole(network: Network) -> None:
    """Refuse a network that is not written as one file.

    Raises:
        SettingError: It is read by a sweep over labels.
    """
    if network.is_sweep:
        raise SettingError(
            "A sweep over labels is not written as one graph: which labels are passed on depends "
            "on the sample. Leave --one-graph out: the files of the stages do."
        )


def export_whole(network: Network, path: Path, policy: ExitPolicy) -> None:
    """Write a network as one ONNX file with conditions, for one sample at a time.

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
    check_whole(network)
    with in_fp32(network):
        way, stages, inputs = _stages(network, policy, None)
        # Conditions take no Python but the simplest: each stage becomes a graph first.
        with _quiet():
            graphs = [
                torch.export.export(stage, (x[:1],)).run_decompositions({}).module()
                for stage, x in zip(stages, inputs, strict=True)
            ]
        program = _onnx(Whole(way, graphs, policy), inputs[0][:1], ["scores", "exit"])
    try:
        program.save(path, external_data=False)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror}.") from error


def export(
    network: Network, folder: Path, policy: ExitPolicy, *, like: Like = None, int8: bool = False
) -> list[Path]:
    """Write a network as ONNX files, see `onward.export`."""
    try:
        earlier = _earlier(folder)
        with in_fp32(network):
            way, stages, inputs = _stages(network, policy, like)
            samples = torch.export.Dim("samples", min=1)
            programs = [
                _onnx(stage, x, ["activities", "scores"], ({0: samples},))
                for stage, x in zip(stages, inputs, strict=True)
            ]
        folder.mkdir(parents=True, exist_ok=True)
        for path in earlier:
            path.unlink()
        files = [folder / f"stage-{number}.onnx" for number in range(len(stages))]
        for program, file in zip(programs, files, strict=True):
            program.save(file, external_data=False)
            if int8:
                _quantize(file)
        manifest = _manifest(way, inputs[0], policy, files)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
        shutil.copyfile(RUNTIME, folder / PROGRAM)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"The folder {folder} cannot be written to: {error.strerror}.") from error
    return files


def _earlier(folder: Path) -> list[Path]:
    """Return the files that an earlier export has left in a folder.

    Raises:
        FileError: It holds something else.
    """
    is_ours = (folder / MANIFEST).exists() and (folder / PROGRAM).exists()
    if folder.exists() and any(folder.iterdir()) and not is_ours:
        raise FileError(f"The folder {folder} holds something else. Name another.")
    names = ("stage-*.onnx", WHOLE, MANIFEST)
    return [path for name in names for path in folder.glob(name)]


def _stages(
    network: Network, policy: ExitPolicy, like: Like
) -> tuple[Forward, list[Stage], list[Tensor]]:
    """Return samples at the beginning of a network, its stages, and an input for each.

    Raises:
        SettingError: A package is missing, or the network or the policy cannot be exported.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise SettingError(
                f"ONNX files are written with {package}, which is not installed. Install it with:\n"
                f'    pip install "onward[export]"'
            )
    policy.check(len(network.fold().exits), is_sweep=network.is_sweep)
    batch = example(network, like)
    reason = _obstacle(network, batch)
    if reason is None:
        # Two, since a size of one would be taken for a constant.
        x = batch.tensor.expand(2, *batch.tensor.shape[1:]).contiguous()
        way = Forward(network, Batch(x))
        exits = way.fold.exits
        network.eval()
        stages = [Stage(way, "input", exits[0]), *(Stage(way, *ends) for ends in pairwise(exits))]
        inputs = [x]
        reason = next((text for stage in stages for text in stage.crossing()), None)
    if reason is not None:
        raise SettingError(f"This network cannot be written as ONNX files: {reason}.")
    try:
        with torch.no_grad():
            for stage in stages:
                inputs.append(stage(inputs[-1])[0])
    except (RuntimeError, TypeError, LookupError) as error:
        raise SettingError(
            f"This network cannot be written as ONNX files for samples of shape "
            f"{tuple(x.shape[1:])}: {error}"
        ) from error
    return way, stages, inputs[:-1]


def _obstacle(network: Network, batch: Batch) -> str | None:
    """Return why a network has no stages that hand one tensor on; None where nothing is known."""
    if not isinstance(batch.inputs, Tensor):
        return f"it has several inputs ({', '.join(batch.inputs)}), and files take one"
    if not batch.inputs.is_floating_point():
        return f"its inputs are of type {batch.inputs.dtype}, and files take float32"
    structure = {*batch.structure, *(name for b in network.all_blocks for name in b.structure)}
    if structure:
        return f"its samples have a structure ({', '.join(sorted(structure))})"
    if network.ticks > 1 or any(edge.delay for own in network.edges for edge in own):
        return "blocks read what came out at an earlier visit"
    return None


def run_exported(folder: Path, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return classes and exits of samples, as the files in a folder say."""
    from onward.standalone import Network as Exported

    return Exported(folder).answer(x)


def _manifest(way: Forward, x: Tensor, policy: ExitPolicy, files: list[Path]) -> dict[str, object]:
    return {
        "format": FORMAT,
        "stages": [file.name for file in files],
        "fold": asdict(way.fold),
        "sweeps": way.readout.sweeps,
        "classes": way.network.num_classes,
        "class_names": way.network.class_names,
        "feature_names": way.network.inputs.feature_names,
        "input_shape": list(x.shape[1:]),
        "takes_pixels": way.network.inputs.kind == "pixels",
        "span": way.network.inputs.span,
        "policy": policy.to_json(),
        "weights_sha256": weights_sha256(way.network),
    }


def _onnx(module: nn.Module, x: Tensor, outputs: list[str], shapes: Any = None) -> Any:
    """Return a module as an ONNX program, for a tensor of which some sizes may be any.

    Raises:
        SettingError: It does something that ONNX cannot express.
    """
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                module,
                (x,),
                input_names=["x"],
                output_names=outputs,
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        text = str(error.__cause__ or error).partition("\n")[0]
        raise SettingError(f"torch cannot write this network as ONNX files: {text}") from error
    if shapes is not None and isinstance(program.model.graph.inputs[0].shape[0], int):
        raise SettingError(
            "This network cannot be written as ONNX files: they would take two samples at a time "
            "and no others. Code of yours has made a constant of their number; where it asks for "
            "it, such as in `candidates`, write tensor.shape[0], and not len()."
        )
    return program


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
