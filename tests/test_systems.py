"""What other systems lack is not needed where one process trains."""

import subprocess
import sys

SCRIPT = """
import os, sys
import psutil  # It asks the system itself.

for name in ("fcntl", "resource"):
    sys.modules[name] = None
del os.getloadavg

import onward as ow

digits = ow.load_data("digits")
network = ow.mlp(digits.input_shape, num_classes=10, widths=(32,))
result = ow.train(network, digits, training=ow.TrainingConfig(epochs=5), folder=sys.argv[1])
assert result.accuracy > 0.5, result
assert ow.load(sys.argv[1]).predict(digits.x_test).equal(network.predict(digits.x_test))
"""


def test_one_process_trains_without_modules_that_only_unix_has(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "run")]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
