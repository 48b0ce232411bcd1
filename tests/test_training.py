"""What `train` refuses before it starts, what it reports, what it leaves as it was."""

import json
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import onward as ow
from onward.config import RunConfig
from onward.errors import SettingError
from onward.placement import Placement
from onward.runs.starting import check_alike
from onward.settings import PlacementConfig
from onward.transport.messages import SingleProcessTransport


class Notes(SingleProcessTransport):
    """A transport that knows what the other rank says: the same, but for some words."""

    def __init__(self, what, ours="", theirs=""):
        super().__init__()
        self.what, self.ours, self.theirs = what, ours, theirs

    def all_gather(self, topic, note):
        ours, theirs = (json.dumps(words)[1:-1] for words in (self.ours, self.theirs))
        other = json.loads(json.dumps(note[self.what]).replace(ours, theirs))
        return [note, {**note, self.what: other}]


def check(transport, **settings):
    network = ow.mlp((4,), num_classes=3, widths=(8,))
    config = RunConfig().with_settings(settings)
    config = config.with_settings({"training.precision": "fp32"})
    check_alike(ow.Stage(network=network), config, Placement("all-layers", (1, 1)), transport)


@pytest.mark.parametrize(
    ("what", "ours", "theirs", "message"),
    [
        (
            "settings",
            "\nlr = 0.001\n",
            "\nlr = 0.002\n",
            "rank 0 has lr = 0.001; rank 1 has lr = 0.002",
        ),
        ("settings", '"fp32"', '"bf16"', 'rank 1 has precision = "bf16"'),
        ("settings", "Adam(lr=0.001", "Adam(lr=0.01", "rank 1 has block 0: Adam(lr=0.01"),
        ("placements", "1,1", "1,2", "rank 0 has all-layers with 1,1 ranks a task"),
        ("versions", "torch 2", "torch 3", "The ranks have different versions"),
        ("weights", "a", "b", "The ranks start from different weights."),
    ],
)
def test_ranks_that_would_train_something_else_are_refused(what, ours, theirs, message):
    with pytest.raises(ow.SettingError, match=re.escape(message)):
        check(Notes(what, ours, theirs))


def test_where_data_lie_and_where_tasks_run_may_differ():
    said = []

    class Listening(Notes):
        def all_gather(self, topic, note):
            said.append(note["settings"])
            return [note, note]

    check(
        Listening("weights"),
        **{"data.name": "/a/x.npz", "data.dir": "/here", "placement.processes": 2},
    )
    check(
        Listening("weights"),
        **{"data.name": "/b/x.npz", "data.dir": "/there", "placement.name": "all-layers"},
    )

    assert said[0] == said[1]


def test_one_process_cannot_be_several():
    config = RunConfig(placement=PlacementConfig(processes=4))

    with pytest.raises(ow.SettingError, match=r"\.processes is 4, and this is one process"):
        ow.run(config)


def test_a_run_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        training = ow.TrainingConfig(epochs=1, threads=1)
        ow.train(
            ow.mlp((1, 8, 8), num_classes=10, widths=(8,)),
            ow.load_data("digits"),
            training=training,
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_sample_counts_once_in_the_figures_of_a_chapter_whatever_its_mini_batch():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(13, 4, generator=draw), torch.arange(13) % 2
    network = ow.mlp((4,), num_classes=2, widths=(8,), optimizer=ow.OptimizerConfig(lr=1e-12))
    dataset = ow.dataset(x, y, x_test=x, y_test=y)

    training = ow.TrainingConfig(epochs=1, batch_size=12, precision="fp32")
    result = ow.train(network, dataset, training=training, validation=0)

    # Nothing was learned, so that those of the chapter and of the test are right alike.
    assert result.progress[0].figures["accuracy"] == pytest.approx(result.accuracy)


@pytest.mark.usefixtures("unchecked")
def test_bytes_of_a_text_are_refused_by_what_they_are(tmp_path):
    (tmp_path / "t.txt").write_text("Some words, again and again. " * 100)
    text = ow.load_data(str(tmp_path / "t.txt"), context=16)

    with pytest.raises(SettingError, match=r"^The samples, of shape .* Use the recipe byte-lm"):
        ow.train(ow.mlp(text.input_shape, num_classes=256, widths=(8,)), text)


def test_samples_that_do_not_fit_are_refused_before_training():
    with pytest.raises(SettingError, match=r"Block 0 cannot take what it reads: .* \(1, 8, 8\)"):
        ow.train(ow.mlp((4,), num_classes=10), ow.load_data("digits"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_than_float32_are_refused(dtype):
    network = ow.mlp((1, 8, 8), num_classes=10, widths=(8,)).to(dtype)

    with pytest.raises(SettingError, match=rf"of block 0 is {dtype}, .* Call network.float\(\)"):
        ow.train(network, ow.load_data("digits"))


def test_a_frozen_block_may_have_weights_of_another_type():
    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x.half()).float()

    head = ow.CrossEntropy(nn.Linear(8, 3))
    frozen = ow.Block(Halved(4, 8).half(), head, None)
    learning = ow.Block(nn.Linear(8, 8), ow.CrossEntropy(nn.Linear(8, 3)), ow.Adam())
    network = ow.Network([frozen, learning], ow.Plain(), ow.SumOfHeads("last"), num_classes=3)
    x, y = torch.rand(12, 4), torch.arange(12) % 3
    training = ow.TrainingConfig(epochs=1, batch_size=4, precision="fp32")

    assert ow.train(network, ow.dataset(x, y), training=training, validation=0).facts


def test_data_of_more_classes_than_the_network_tells_apart_are_refused():
    with pytest.raises(SettingError, match=r"The data have 10 classes, and the network was"):
        ow.train(ow.mlp((1, 8, 8), num_classes=5), ow.load_data("digits"))


def test_the_peak_of_memory_is_that_of_the_rank_and_not_of_what_launched_it():
    told = "from onward.costs.memory import peak; print(peak())"
    launch = f"os.execv(sys.executable, [sys.executable, '-c', {told!r}])"
    fat = f"import os, sys; x = b'x' * 10**9; {launch}"

    done = subprocess.run([sys.executable, "-c", fat], capture_output=True, text=True, check=True)

    assert 10**8 < int(done.stdout) < 10**9
