"""Early exit on onnxruntime, for networks that `onward export` has written.

It needs onnxruntime and numpy, and neither torch nor onward: copy it with the files.

    from infer import Network
    labels, exits = Network("DIR").answer(x)          # x: shape (samples, inputs...)

    python infer.py DIR SAMPLES.npz                   # prints label and exit of each sample

A network that was trained on uint8 takes uint8, or floats from 0 to 1.
"""

import argparse
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]

FORMAT = 3  # Version of the layout of the folder.


class Network:
    """A network in stages.

    Args:
        folder: Where its files lie.
        threads: Threads that a stage computes with.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        folder = Path(folder)
        self.manifest = json.loads((folder / "manifest.json").read_text())
        if self.manifest["format"] != FORMAT:
            text = f"{folder} has format {self.manifest['format']}, and this reads {FORMAT}."
            raise ValueError(f"{text} Run the infer.py that lies in it.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        self.stages = [
            onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in self.manifest["stages"]
        ]
        self.policy = self.manifest["policy"]

    def answer(self, x: Array, batch_size: int = 500) -> tuple[Array, Array]:
        """Return the class of each sample, and the exit at which it was known."""
        shape = tuple(self.manifest["input_shape"])
        x = x[None] if x.shape == shape else x  # One sample alone.
        is_divided = x.dtype == np.uint8 and self.manifest["takes_pixels"]
        x = np.ascontiguousarray(x, np.float32) / np.float32(255 if is_divided else 1)
        if x.shape[1:] != shape:
            text = f"The samples have shape {x.shape[1:]}, and the network takes samples of shape"
            raise ValueError(f"{text} {shape}.")
        odd = ~np.isfinite(x).reshape(len(x), math.prod(shape)).all(axis=1)
        if odd.any():
            text = f"{odd.sum()} of {len(x)} samples hold values that are NaN or infinite"
            raise ValueError(f"{text}, the first is sample {odd.argmax()}. Leave them out.")
        self._check_span(x)
        labels, exits = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            self._answer(x[part], labels[part], exits[part])
        return labels, exits

    def _check_span(self, x: Array) -> None:
        """Warn of values that are far from those of the training."""
        if self.manifest["span"] is None or not x.size:
            return
        (least, most), low, high = self.manifest["span"], x.min(), x.max()
        room = most - least
        if min(low - least, most - high) < -room / 2 or 0 < high - low < room / 50:
            text = f"The samples have values from {low:.4g} to {high:.4g}, and the network was "
            text += f"trained on values from {least:.4g} to {most:.4g}."
            warnings.warn(f"{text} Scale them as the training samples were.", stacklevel=3)

    def _answer(self, x: Array, labels: Array, exits: Array) -> None:
        classes, is_sweep = self.manifest["classes"], self.manifest["sweeps"]
        left = np.arange(len(x))  # Samples that have not left.
        history = np.zeros((0, len(x), classes), np.float32)
        total = np.zeros((len(x), classes), np.float32)
        # Of a sweep, a pass is a sample with a label.
        samples, names = np.repeat(left, classes), np.tile(np.arange(classes), len(x))
        activities = x
        for number, stage in enumerate(self.stages):
            activities, found = stage.run(None, {"x": activities})
            if is_sweep:
                full = np.full((len(left), classes), -np.inf, np.float32)
                full[samples, names] = found
                found = full
            total, scores = self._step(total, number, found)
            history = np.concatenate([history, scores[None]])
            leaves = self._leaves(history)
            exits[left[leaves]] = number
            labels[left[leaves]] = scores[leaves].argmax(axis=1)
            if leaves.all():
                return
            stays = ~leaves
            if is_sweep:
                alive = stays[:, None] & self._alive(history)
                kept, place = alive[samples, names], np.cumsum(stays) - 1
                activities, names = activities[kept], names[kept]
                samples = place[samples[kept]]
            else:
                activities = activities[stays]
            left, history, total = left[stays], history[:, stays], total[stays]

    def _step(self, total: Array, number: int, found: Array) -> tuple[Array, Array]:
        """Go on to an exit: `onward.Fold.step`, with the fold of the manifest."""
        fold, scores = self.manifest["fold"], total + found
        total = scores if fold["adds"][number] else total
        return total, log_softmax(scores) if fold["is_softmax"] else scores

    def _leaves(self, history: Array) -> Array:
        number = len(history) - 1
        if number == len(self.policy["thresholds"]):
            return np.ones(history.shape[1], bool)
        leaves = self._alive(history).sum(axis=1) == 1
        threshold = float(self.policy["thresholds"][number])
        if threshold == math.inf:
            return leaves
        return leaves | (confidence(self.policy["confidence"], history) >= threshold)

    def _alive(self, history: Array) -> Array:
        number, scores = len(history) - 1, history[-1]
        drops = self.policy["drops"]
        drop = float(drops[number]) if drops else math.inf
        return (scores >= scores.max(axis=1, keepdims=True) - drop) & (scores > -np.inf)


def log_softmax(scores: Array) -> Array:
    """Return scores as log-probabilities."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def confidence(name: str, history: Array) -> Array:
    """Return how sure the network is of each sample."""
    scores = history[-1]
    if name == "margin":
        second, best = np.sort(scores, axis=1)[:, -2:].T
        return best - second
    if name == "max-score":
        return scores.max(axis=1)
    if name == "probability":
        return np.exp(log_softmax(scores)).max(axis=1)
    if name == "entropy":
        log_p = np.maximum(log_softmax(scores), np.finfo(np.float32).min)
        return (np.exp(log_p) * log_p).sum(axis=1)
    if name == "patience":
        labels = history.argmax(axis=2)
        return np.cumprod((labels == labels[-1])[::-1], axis=0).sum(axis=0)
    raise ValueError(f"There is no confidence {name}.")


def read(path: Path) -> Array:
    """Return the samples of an .npz file, its member x."""
    path.open("rb").close()  # Where it cannot be read, this says why.
    try:
        with np.load(path) as file:
            names, x = file.files, np.array(file.get("x", 0))
    except Exception as error:  # What damaged archives raise has no common base.
        raise ValueError(f"{path} is damaged, or no .npz file of numbers: {error}") from error
    if "x" not in names:
        raise ValueError(
            f"{path} has no member x, the samples. It has {', '.join(names) or 'none'}."
        )
    if not x.size:
        raise ValueError(f"{path} holds no samples: x has the shape {x.shape}.")
    return x


def main() -> None:
    """Print label and exit of each sample of a file."""
    parser = argparse.ArgumentParser(prog="python infer.py", description=main.__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="what `onward export` has written")
    parser.add_argument("samples", metavar="SAMPLES.npz", type=Path, help="samples, as member x")
    options = parser.parse_args()
    warnings.formatwarning = lambda message, *_, **__: f"infer.py: warning: {message}\n"
    try:
        network = Network(options.folder)
        found = network.answer(read(options.samples))
    except OSError as error:
        sys.exit(f"infer.py: {error.filename} cannot be read: {error.strerror}.")
    except (ValueError, TypeError, KeyError) as error:
        sys.exit(f"infer.py: {error}")
    names = network.manifest["class_names"] or range(network.manifest["classes"])
    for label, number in zip(*found, strict=True):
        print(names[label], number)


if __name__ == "__main__":
    main()
