"""What is asked of a GPU, where there is one: the same bits each time, and no step that waits."""

import warnings

import pytest
import torch
from commands import assert_two_processes_end_as_one
from prepared import prepare
from test_methods import METHODS, QUICK, STILL

import onward as ow
from onward.transport.copies import Copies, brought_beside

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU that torch can use."),
    # Many learn little. That a kernel has no deterministic form is an error here.
    pytest.mark.filterwarnings("ignore::onward.errors.OnwardWarning"),
]

GPU = "cuda"
SMALL = STILL | {"network.channels": (8, 12, 16), "network.pooled": (1,)}
FIRST = {
    "one-pass": ("one-pass", {}),
    "pff": ("pff", {"network.readout": "softmax"}),
    "hinton": ("hinton", {}),
    "conv": ("conv", SMALL),
    "predsim": ("predsim", SMALL),
    "ff-conv": ("ff-conv", SMALL),
}
RUNS = {**FIRST, **METHODS}


def trained(recipe, changes, folder=None, listener=None):
    """Return the result of a small run on the GPU."""
    settings = QUICK | {"training.precision": "fp32"} | changes | {"training.device": GPU}
    config = ow.RunConfig(recipe=recipe).with_settings(settings)
    return ow.run(config, listener or ow.Listener(), folder)


def weights_of(result):
    return result.facts["weights_sha256"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RUNS)
def test_a_training_ends_in_the_same_bits_again(name, precision):
    recipe, changes = RUNS[name]
    changes = changes | {"training.precision": precision}

    first, second = trained(recipe, changes), trained(recipe, changes)

    assert weights_of(first) == weights_of(second)
    assert first.facts["device"] == GPU
    assert first.network.device.type == "cpu"


@pytest.mark.parametrize(
    ("recipe", "changes", "placement", "num_ranks"),
    [
        ("pff", {"network.readout": "softmax"}, "all-layers", 2),
        ("pff", {"data.shift": 1}, "single-layer", 2),
        ("one-pass", {"plan.slices": 2}, "all-layers", 2),
        ("hinton", {}, "stream", 2),
        ("conv", SMALL | {"plan.kind": "stream"}, "stream", 2),
    ],
)
def test_ranks_end_in_the_weights_of_one(recipe, changes, placement, num_ranks):
    states = []
    for name, ranks in (("sequential", 1), (placement, num_ranks)):
        made = prepare(recipe, QUICK | changes, 0)
        made.network.to(GPU)
        first, *_ = made.run(name, ranks)
        states.append(first.worker.network.state_dict())

    for name, tensor in states[0].items():
        assert tensor.equal(states[1][name]), name


@pytest.mark.distributed
@pytest.mark.parametrize("plan", ["chapters", "stream"])
def test_processes_that_share_a_gpu_end_in_the_weights_of_one(plan, tmp_path):
    small = ("--widths", "64,64", "--epochs", "2", "--plan", plan, "--device", GPU)

    assert_two_processes_end_as_one(tmp_path, "one-pass", *small)


@pytest.mark.parametrize("recipe", ["one-pass", "pff", "symba", "conv", "supcon"])
def test_no_step_waits_for_the_gpu(recipe):
    found, blocks = [], 0
    own = SMALL if recipe == "conv" else {}
    for size in (40, 10):
        changes = {"training.batch_size": size, "training.epochs": 2}
        made = prepare(recipe, QUICK | own | changes, 0)
        made.network.to(GPU)
        blocks = len(made.network.all_blocks)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                made.run("sequential", 1)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append(sum("synchronizing" in str(each.message) for each in told))

    # Whether all units were active is asked twice more an epoch and block, where steps are 4 times
    # as many.
    assert found[1] - found[0] <= 3 * 2 * blocks


def test_it_is_as_accurate_as_a_processor():
    changes = {"network.widths": (128, 128, 128), "training.epochs": 20}

    assert trained("one-pass", changes | {"training.precision": "auto"}).accuracy > 0.95


def test_a_run_that_was_cut_goes_on_in_the_same_bits(tmp_path):
    class Cut(ow.Listener):
        def progress(self, entry):
            if entry.chapter == 1:
                raise KeyboardInterrupt

    changes = {"training.epochs": 3}
    expected = trained("pff", changes)
    with pytest.raises(KeyboardInterrupt):
        trained("pff", changes, tmp_path / "run", Cut())

    found = trained("pff", changes, tmp_path / "run")

    assert found.facts["tasks_done_before"] > 0
    assert weights_of(found) == weights_of(expected)


def test_a_network_answers_there_as_on_the_processor(tmp_path):
    network = trained("one-pass", {"network.widths": (64, 64), "training.epochs": 5}).network
    test = ow.load_data("digits").test
    expected = network.predict_proba(test)
    policy = ow.calibrate(network, test, max_error_increase=0.01).policy
    answers = ow.answer(network, test, policy)

    network.to(GPU)

    assert torch.allclose(network.predict_proba(test).cpu(), expected, atol=1e-4)
    found = ow.answer(network, test, policy)
    assert (found.labels == answers.labels).float().mean() > 0.99
    ow.save(network, tmp_path / "model")
    assert ow.load(tmp_path / "model").device.type == "cpu"


def test_a_run_that_would_not_fit_is_refused_with_what_is_free(monkeypatch):
    monkeypatch.setattr("onward.costs.memory.free_bytes", lambda device: 1000)

    with pytest.raises(ow.SettingError, match=r"may hold 0 MB \(free memory of .*several GPUs"):
        trained("one-pass", {})


def test_copies_are_there_when_they_were_waited_for():
    tensors = [torch.rand(1000, 1000, device=GPU) for _ in range(3)]
    products = [tensor @ tensor for tensor in tensors]

    there = Copies(products).wait()
    back = brought_beside(there, torch.device(GPU))

    for tensor, copy, other in zip(products, there, back, strict=True):
        assert copy.is_pinned()
        assert tensor.cpu().equal(copy)
        assert tensor.equal(other)
