"""Find seizures in recordings of your own, and stop early where the network is sure.

    python examples/recordings.py

Recordings are cut into windows, and each window knows its recording: windows of one recording are
alike, so training, calibration and test take whole recordings. Here they are made up: noise, and
in some windows spikes and waves three times a second. Put your own in their place. What the network
sees is the logarithm of each window's spectrum; saved as `windows.npz` with `x`, `y` and `groups`,
it can be given to the command: `onward train one-pass --data windows.npz --out RUN`, `onward exits
RUN`.
"""

import tempfile
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score, recall_score

import onward as ow

RATE, SECONDS, CHANNELS = 64, 2, 2
RECORDINGS, WINDOWS = 24, 60


def record(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows of a recording, and which of them are seizures."""
    draw = np.random.default_rng(number)
    time = np.arange(RATE * SECONDS) / RATE
    noise = draw.normal(size=(WINDOWS, CHANNELS, len(time))).cumsum(axis=2)
    noise -= noise.mean(axis=2, keepdims=True)
    noise /= noise.std(axis=2, keepdims=True)
    seizure = (draw.random(WINDOWS) < 0.25).astype(np.int64)
    phase = draw.random((WINDOWS, 1, 1)) * 2 * np.pi
    wave = np.sin(2 * np.pi * 3 * time + phase) + 2 * (np.sin(2 * np.pi * 3 * time + phase) > 0.95)
    strength = draw.uniform(0.05, 0.5)  # No two patients are alike.
    return noise + strength * wave * seizure[:, None, None], seizure


def main() -> None:
    recordings = [record(number) for number in range(RECORDINGS)]
    x = np.concatenate([windows for windows, _ in recordings]).astype(np.float32)
    y = np.concatenate([seizure for _, seizure in recordings])
    groups = np.repeat(np.arange(RECORDINGS), WINDOWS)
    # What matters is the shape of the spectrum, wherever in the window the wave begins.
    x = np.log1p(np.abs(np.fft.rfft(x, axis=2))).astype(np.float32)

    train, held_out, test = groups < 14, (groups >= 14) & (groups < 19), groups >= 19
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "windows.npz"
        np.savez(path, x=x[train], y=y[train], groups=groups[train], x_test=x[test], y_test=y[test])
        dataset = ow.load_data(str(path))
    network = ow.mlp(dataset.input_shape, num_classes=2, widths=(64, 64, 64))
    ow.train(network, dataset, training=ow.TrainingConfig(epochs=12), validation=0)

    whole = network.predict(x[test])
    found = ow.calibrate(network, x[held_out], y[held_out], max_error_increase=0.0)
    answers = ow.answer(network, x[test], found.policy)
    for name, labels in (("full depth", whole), ("early exit", answers.labels)):
        sensitivity = recall_score(y[test], labels)
        print(
            f"{name:14} macro-F1 {f1_score(y[test], labels, average='macro'):.3f}, "
            f"sensitivity {sensitivity:.1%}"
        )
    print(
        f"{found.full_macs / found.mean_macs:.1f} times fewer operations on the held-out "
        f"recordings; windows a stage: {answers.exits.bincount(minlength=3).tolist()}"
    )


if __name__ == "__main__":
    main()
