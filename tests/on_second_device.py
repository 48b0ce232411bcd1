"""Runs on another device than the processor: all of them is there, and no step waits for it.

`test_devices` runs these tests in a process of their own, in which nothing was differentiated
before torch hears of the device.
"""

import importlib
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from contract_cases import CASES, train
from contract_cases import RUNS as CONTRACT
from prepared import CHAPTERS, SLICED, SMALL, STREAMS, prepare
from second_device import second_device, waits
from test_methods import LATER, METHODS, QUICK
from thinned import thinned

import onward as ow
from onward.costs.times import measure
from onward.engine.stretches import Training, train_block
from onward.launcher import launch

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    # The fallback writes where a GPU has kernels of its own.
    # Many learn little.
    pytest.mark.filterwarnings("ignore::onward.errors.OnwardWarning"),
    pytest.mark.filterwarnings("ignore:An output with one or more elements was resized"),
]

IN_FP32 = {"training.precision": "fp32"}
RUNS = {name: (recipe, QUICK | changes, 0) for name, (recipe, changes) in METHODS.items()}
RUNS |= {name: (recipe, QUICK | changes, 1) for name, (recipe, changes) in LATER.items()}
for kind, cases in {"chapters": CHAPTERS, "stream": STREAMS, "sliced": SLICED}.items():
    RUNS |= {f"{kind}, {name}": (*run, 0) for name, run in cases.items()}


def prepared(name, **more):
    recipe, changes, stage = RUNS[name]
    return prepare(recipe, changes | IN_FP32 | more, stage)


def on_second_device(made, name="sequential", num_ranks=1):
    """Return the network of a run there, back on the processor."""
    made.network.to(second_device())
    first, *_ = made.run(name, num_ranks)
    first.worker.settle()
    network = first.worker.network
    assert {t.device.type for t in (*network.parameters(), *network.buffers())} == {"second"}
    return network.to("cpu")


def assert_nearly_the_same(actual, expected):
    """The draws are the same; some products of a device are rounded in another order."""
    theirs = expected.state_dict()
    for name, tensor in actual.state_dict().items():
        if tensor.is_floating_point():
            assert (tensor - theirs[name]).norm() <= 1e-5 * theirs[name].norm() + 1e-9, name


@pytest.fixture(scope="module", autouse=True)
def known_to_torch():
    # Not by an import: whoever collects tests would have it as well.
    second_device()


@pytest.fixture
def by_itself(monkeypatch):
    """Let runs find the second device."""
    for name in ("preparation", "starting", "training"):
        module = importlib.import_module(f"onward.runs.{name}")
        monkeypatch.setattr(module, "find_device", lambda name: second_device())


@pytest.mark.parametrize("name", thinned(RUNS, every=24))
def test_a_second_device_ends_in_the_weights_of_the_processor(name):
    made = prepared(name)
    expected, *_ = deepcopy(made).run("sequential", 1)

    assert_nearly_the_same(on_second_device(made), expected.worker.network)


@pytest.mark.parametrize(
    "name",
    ["chapters, adaptive, softmax", "chapters, shifted", "stream, hints of age 1"],
)
def test_samples_that_there_is_no_room_for_are_brought_there_as_needed(name, monkeypatch):
    expected = on_second_device(prepared(name))

    monkeypatch.setattr("onward.runtime.workers.free_bytes", lambda device: 0)

    assert_nearly_the_same(on_second_device(prepared(name)), expected)


@pytest.mark.parametrize(
    ("name", "placement", "num_ranks"),
    [
        ("chapters, adaptive, softmax", "all-layers", 2),
        ("chapters, shifted", "single-layer", 3),
        ("sliced, samples", "all-layers", 2),
        ("stream, hints of age 5", "stream", 4),
    ],
)
def test_placements_on_a_second_device_end_in_the_same_weights(name, placement, num_ranks):
    expected = on_second_device(prepared(name))

    found = on_second_device(prepared(name), placement, num_ranks)

    for tensor, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert tensor.equal(other)


def test_a_run_that_was_cut_goes_on_in_the_same_bits(by_itself, monkeypatch, tmp_path):
    class Cut(ow.Listener):
        def progress(self, entry):
            if entry.chapter == 2:
                raise KeyboardInterrupt

    # No run file names this device.
    monkeypatch.setattr("onward.runs.folders._complete", lambda config, result: config)
    config = ow.RunConfig(recipe="pff").with_settings(SMALL)
    expected = ow.run(config, ow.Listener())
    with pytest.raises(KeyboardInterrupt):
        ow.run(config, Cut(), tmp_path / "run")

    found = ow.run(config, ow.Listener(), tmp_path / "run")

    assert found.facts["tasks_done_before"] > 0
    assert found.facts["weights_sha256"] == expected.facts["weights_sha256"]


@pytest.mark.slow
def test_ranks_of_several_processes_end_in_the_weights_of_one(tmp_path):
    file = tmp_path / "digests"
    script = Path(__file__).with_name("device_ranks.py")
    # One rank that has all slices to itself.
    alone = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "alone")], capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr

    assert launch(2, [str(script), str(file)]) == 0

    assert file.read_text() == (tmp_path / "alone").read_text()


@pytest.mark.parametrize(("case", "kind"), thinned(CONTRACT, every=16))
def test_all_that_networks_are_made_of_is_on_the_second_device(case, kind, by_itself, monkeypatch):
    _, there = train(CASES[case], kind=kind)
    monkeypatch.undo()
    _, here = train(CASES[case], kind=kind)

    assert there.facts["device"] == "second"
    assert {tensor.device.type for tensor in there.network.parameters()} == {"cpu"}
    # All together: what has no gradient, such as the bias of a key, follows rounding alone.
    weights = [
        torch.cat([tensor.detach().flatten() for tensor in result.network.parameters()])
        for result in (there, here)
    ]
    assert (weights[0] - weights[1]).norm() <= 1e-3 * weights[1].norm()


@pytest.mark.parametrize(
    "name",
    [
        "chapters, one-pass",
        "chapters, adaptive, softmax",
        "stream, hints of age 1",
        "iffcl",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("chapters, one-pass by autograd", "chapters, shifted", "symba", "supcon")
        ),
    ],
)
def test_no_step_waits_for_the_device(name):
    found = []
    for size in (80, 20):
        made = prepared(name, **{"training.batch_size": size})
        made.network.to(second_device())
        before = waits()
        made.run("sequential", 1)
        found.append(waits() - before)

    epochs = made.plan.epochs * len(made.network.all_blocks)
    # Each has 22 mini-batches more, and asks twice more which units were active.
    assert found[1] - found[0] <= 3 * epochs


def test_what_a_user_asks_is_brought_to_the_network(tmp_path):
    whole = ow.load_data("digits")
    # Of such features each is standardized.
    x = whole.x[:300].flatten(1).float() * torch.logspace(0, 3, 64)
    data = ow.dataset(x, whole.y[:300], x_test=x[:9], y_test=whole.y[:9])
    config = ow.RunConfig().with_settings(IN_FP32 | {"network.widths": (8, 8)})
    network = ow.run(config, ow.Listener(), dataset=data).network
    expected = network.predict_proba(x[:9])

    network.to(second_device())

    assert network.inputs.mean.device.type == "second"
    assert torch.allclose(network.predict_proba(x[:9]).cpu(), expected, atol=1e-5)
    assert network.predict(x[:9].numpy()).device.type == "second"
    assert network.predict(x[:9].to(second_device())).device.type == "second"
    ow.save(network, tmp_path / "model")
    assert ow.load(tmp_path / "model", network).inputs.mean.device.type == "second"
    assert torch.allclose(network.predict_proba(x[:9]).cpu(), expected, atol=1e-5)


def test_a_network_that_a_user_has_moved_is_trained(by_itself):
    network = ow.mlp((1, 8, 8), num_classes=10, widths=(16, 16)).to(second_device())

    found = ow.train(
        network,
        ow.load_data("digits"),
        training=ow.TrainingConfig(epochs=4),
        shift=1,
        standardize="feature",
    )

    assert found.facts["device"] == "second"
    assert found.network.device.type == "cpu"


@pytest.mark.parametrize("fused", [False, True])
def test_optimizers_of_torch_do_not_wait_there_either(fused):
    found = []
    for batches in (4, 16):
        rule = ow.optimizer(torch.optim.AdamW, lr=1e-3, fused=fused)
        block = ow.Block(torch.nn.Linear(4, 8), ow.CrossEntropy(torch.nn.Linear(8, 3)), rule)
        block.to(second_device())
        block.init_optimizer()
        # As it comes from another rank, or a file.
        block.set_optimizer_tensors([tensor.cpu() for tensor in block.optimizer_tensors()])
        batch = ow.Batch(torch.rand(6, 4), {"label": torch.arange(6) % 3}).to(second_device())
        before = waits()
        train_block(block, [{"input": batch}] * batches, Training(seed=0), batches=batches)
        found.append(waits() - before)

    assert found[1] - found[0] <= 2


def test_early_exit_is_the_same_there():
    test = ow.load_data("digits").test
    network = ow.run(ow.RunConfig().with_settings(SMALL), ow.Listener()).network
    expected = ow.calibrate(network, test, max_error_increase=0.01)
    answers = ow.answer(network, test, expected.policy)

    network.to(second_device())
    found = ow.calibrate(network, test, max_error_increase=0.01)
    again = ow.answer(network, test, found.policy)

    assert found.policy == expected.policy
    assert again.labels.equal(answers.labels)
    assert again.exits.equal(answers.exits)
    assert answers.exits.unique().numel() > 1


def test_costs_are_measured_there():
    made = prepared("chapters, adaptive, softmax")

    costs = measure(made.network, made.shards[0], 100, made.settings, device=second_device())

    assert min(costs.train) > 0
    assert made.network.device.type == "cpu"
