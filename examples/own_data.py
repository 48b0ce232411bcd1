"""Train on arrays of your own, whose samples belong together in groups.

    python examples/own_data.py

The samples of one patient, writer or machine are alike. If some of them are test samples and others
training samples, the test looks better than the network is. So each sample has the number of its
group, and no split cuts a group. Here the arrays are handwritten digits. Who wrote which is not
known, but neighbouring samples are alike; so runs of them stand in for writers.
"""

import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import onward as ow

NUM_WRITERS = 13


def main() -> None:
    digits = load_digits()
    writers = np.arange(len(digits.data)) * NUM_WRITERS // len(digits.data)
    dataset = ow.dataset(
        digits.data / 16, digits.target, groups=writers, num_classes=10, name="writers"
    )
    print(
        f"{dataset.num_samples} samples to learn from, {len(dataset.x_test)} of other writers to "
        "test"
    )

    network = ow.mlp(dataset.input_shape, num_classes=10, widths=(128, 128, 128))
    result = ow.train(network, dataset, training=ow.TrainingConfig(epochs=10), validation=0.15)
    assert result is not None  # It is None on all ranks but the first; here there is one.
    print(f"test accuracy {result.accuracy:.1%}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        ow.save(network, path)
        again = ow.load(path)
    new_samples = dataset.x_test[:8]
    print(f"predicted {again.predict(new_samples).tolist()}")
    print(f"in truth  {dataset.y_test[:8].tolist()}")


if __name__ == "__main__":
    main()
