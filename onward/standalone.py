"""Early exit on onnxruntime, for networks that `onward export` has written.

It needs onnxruntime and numpy, and neither torch nor onward: copy it with the files.

    from infer import Network
    labels, exits = Network("DIR").answer(x)          # x: float32, shape (rows, inputs...)

    python infer.py DIR ROWS.npz                      # prints label and exit of each row

Rows of type uint8 are taken for pixels and scaled by 1/255, as in training.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]


class Network:
    """A network in stages.

    Args:
        folder: Where its files lie.
        threads: Threads that a stage computes with.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        folder = Path(folder)
        self.manifest = json.loads((folder / "manifest.json").read_text())
        if self.manifest["format"] != 1:
            raise ValueError(f"{folder} has format {self.manifest['format']}, and this reads 1.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        self.stages = [
            onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in self.manifest["stages"]
        ]
        self.policy = self.manifest["policy"]

    def answer(self, x: Array, batch_size: int = 500) -> tuple[Array, Array]:
        """Return the class of each row, and the exit at which it was known."""
        shape = tuple(self.manifest["input_shape"])
        x = np.ascontiguousarray(x, np.float32) / np.float32(255 if x.dtype == np.uint8 else 1)
        if x.shape[1:] != shape or not np.isfinite(x).all():
            raise ValueError(f"Rows are finite, of shape {shape}; these are {x.shape[1:]}.")
        labels, exits = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            self._answer(x[part], labels[part], exits[part])
        return labels, exits

    def _answer(self, x: Array, labels: Array, exits: Array) -> None:
        classes, is_sweep = self.manifest["classes"], self.manifest["readout"] == "sweep"
        left = np.arange(len(x))  # Rows that have not left.
        history = np.zeros((0, len(x), classes), np.float32)
        total = np.zeros((len(x), classes), np.float32)
        # Of a sweep, a pass is a row with a label.
        rows, names = np.repeat(left, classes), np.tile(np.arange(classes), len(x))
        activities = x
        for number, stage in enumerate(self.stages):
            activities, found = stage.run(None, {"x": activities})
            if is_sweep:
                scores = np.full((len(left), classes), -np.inf, np.float32)
                scores[rows, names] = found + total[rows, names]
            else:
                scores = found + total
            if self.manifest["adds"][number]:
                total = scores
            if self.manifest["readout"] == "softmax":
                scores = log_softmax(scores)
            history = np.concatenate([history, scores[None]])
            leaves = self._leaves(history)
            exits[left[leaves]] = number
            labels[left[leaves]] = scores[leaves].argmax(axis=1)
            if leaves.all():
                return
            stays = ~leaves
            if is_sweep:
                alive = stays[:, None] & self._alive(history)
                kept, place = alive[rows, names], np.cumsum(stays) - 1
                activities, rows, names = activities[kept], place[rows[kept]], names[kept]
            else:
                activities = activities[stays]
            left, history, total = left[stays], history[:, stays], total[stays]

    def _leaves(self, history: Array) -> Array:
        number, rows = len(history) - 1, history.shape[1]
        if number == len(self.policy["thresholds"]):
            return np.ones(rows, bool)
        leaves = self._alive(history).sum(axis=1) == 1
        threshold = float(self.policy["thresholds"][number])
        if threshold == math.inf:
            return leaves
        sure = confidence(self.policy["confidence"], history)
        if self.policy["neurons"]:
            weight, bias = self.policy["neurons"][number]
            sure = 1 / (1 + np.exp(-(weight * sure + bias)))
        return leaves | (sure >= threshold)

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
    """Return how sure the network is of each row."""
    scores = history[-1]
    if name == "margin":
        second, best = np.sort(scores, axis=1)[:, -2:].T
        return best - second
    if name in ("max-score", "sigmoid"):
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


if __name__ == "__main__":
    try:
        folder, rows = sys.argv[1:]
        with np.load(rows) as file:
            found = Network(folder).answer(file["x"])
    except (ValueError, TypeError, KeyError, OSError) as error:
        sys.exit(f"{error}\nusage: python infer.py DIR ROWS.npz, with the rows as its member x")
    for label, number in zip(*found, strict=True):
        print(label, number)
