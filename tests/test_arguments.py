"""Arguments of another type than a function takes: a sentence says what it takes."""

import math
import re

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

import onward as ow
from onward.errors import SettingError


@pytest.fixture(autouse=True)
def without_types(monkeypatch):
    """Let calls through that a test with types would refuse, as in a user's script."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


INPUTS, UNITS, CLASSES = 4, 6, 2
QUICK = ow.TrainingConfig(epochs=1, batch_size=10)


def data(samples=41):
    y = np.arange(samples) % CLASSES
    x = np.random.default_rng(0).random((samples, INPUTS))
    return ow.dataset(x, y, x_test=x[:10], y_test=y[:10])


def block(**changed):
    given = {
        "module": nn.Linear(INPUTS, UNITS),
        "objective": ow.CrossEntropy(nn.Linear(UNITS, CLASSES)),
        "optimizer": ow.Adam(),
    }
    return ow.Block(**given | changed)


def network(*blocks, **changed):
    given = {
        "blocks": list(blocks) or [block()],
        "sampler": ow.Plain(),
        "readout": ow.SumOfHeads(),
        "num_classes": CLASSES,
    }
    return ow.Network(**given | changed)


def train(trained=None, dataset=None, **settings):
    trained = network() if trained is None else trained
    return ow.train(trained, data() if dataset is None else dataset, validation=0, **settings)


def refuses(make, *says):
    with pytest.raises(SettingError) as refused:
        make()
    for text in says:
        assert text in str(refused.value)
    return str(refused.value)


# Blocks


@pytest.mark.parametrize(
    ("objective", "got"),
    [
        (nn.CrossEntropyLoss(), "got a CrossEntropyLoss of torch."),
        (nn.Linear(UNITS, CLASSES), "got a Linear of torch."),
        (ow.CrossEntropy, "got the class CrossEntropy, not an instance."),
        (None, "got None."),
    ],
)
def test_what_is_no_objective_is_refused_with_an_example_of_one(objective, got):
    says = "ow.Block: objective must be an ow.Objective, such as ow.CrossEntropy(nn.Linear("

    refuses(lambda: block(objective=objective), says, got)


@pytest.mark.parametrize("module", [nn.ReLU, torch.relu, [nn.ReLU()]])
def test_what_is_no_module_is_refused(module):
    refuses(lambda: block(module=module), "ow.Block: module must be an nn.Module, such as nn.Lin")


@pytest.mark.parametrize("head", [10, nn.Linear])
def test_a_head_that_is_no_module_is_refused(head):
    refuses(lambda: ow.CrossEntropy(head), "ow.CrossEntropy: head must be a module")


@pytest.mark.parametrize(
    "optimizer",
    [
        ow.Adam,
        torch.optim.Adam,
        torch.optim.Adam([nn.Parameter(torch.zeros(1))]),
        {"module": torch.optim.Adam, "": ow.Adam()},
        {0: ow.Adam()},
        0.1,
    ],
)
def test_what_is_no_optimizer_is_refused_alone_and_as_one_of_several(optimizer):
    says = "optimizer must be an optimizer of Onward, such as ow.Adam(lr=1e-3), or of torch as"

    refuses(lambda: block(optimizer=optimizer), says)
    refuses(lambda: setattr(block(), "optimizer", optimizer), says)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ow.Adam(lr=-1e-3), "ow.Adam: lr must be a number of 0 or more; got -0.001."),
        (lambda: ow.Adam(lr="0.1"), "ow.Adam: lr must be a number of 0 or more; got '0.1'."),
        (lambda: ow.Adam(beta1=1.5), "beta1 must be a number of 0 or more and below 1; got 1.5."),
        (lambda: ow.Adam(beta2=1.0), "beta2 must be a number of 0 or more and below 1; got 1.0."),
        (lambda: ow.Adam(eps=-1e-8), "eps must be a number of 0 or more; got -1e-08."),
        (lambda: ow.SGD(lr=math.nan), "ow.SGD: lr must be a number of 0 or more; got nan."),
        (lambda: ow.SGD(momentum=1.0), "ow.SGD: momentum must be a number of 0 or more and below"),
        (lambda: ow.SGD(weight_decay=-5), "weight_decay must be a number of 0 or more; got -5."),
    ],
)
def test_numbers_that_an_optimizer_cannot_have_are_refused(make, says):
    refuses(make, says)


def test_numbers_of_numpy_and_a_learning_rate_of_zero_are_taken():
    assert ow.Adam(lr=np.float32(0.5), weight_decay=1).lr == 0.5
    assert ow.SGD(lr=0).lr == 0


@pytest.mark.parametrize("reads", [0, "input", ("0",), (None,)])
def test_what_a_block_cannot_read_is_refused(reads):
    refuses(
        lambda: block(reads=reads), "reads must be a tuple of numbers of blocks", f"{reads!r}"[:1]
    )


def test_an_edge_from_nowhere_is_refused():
    refuses(lambda: ow.Edge("3"), "ow.Edge: source must be the number of a block, or 'input'; got")


@pytest.mark.parametrize(("name", "value"), [("structure", "links"), ("schedule", 0.5)])
def test_other_arguments_of_a_block_are_held_against_their_types(name, value):
    refuses(lambda: block(**{name: value}), f"ow.Block: {name} must be a", f"got {value!r}.")


# Networks


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("blocks", nn.Linear(3, 3), "blocks must be a list of ow.Block; got a Linear of torch."),
        ("blocks", [nn.Linear(3, 3)], "got a list that holds a Linear of torch."),
        ("blocks", [], "A network has one block or more; got none."),
        ("sampler", ow.Plain, "sampler must be an ow.Sampler, such as ow.Plain(); got the class"),
        ("readout", "heads", "readout must be an ow.Readout, such as ow.SumOfHeads(); got 'heads'"),
        ("readouts", [ow.SumOfHeads()], "readouts must be a dict of ow.Readout by name; got a lis"),
        ("num_classes", "2", "num_classes must be a whole number; got '2'."),
        ("num_classes", 2.0, "num_classes must be a whole number; got 2.0."),
        ("ticks", "2", "ticks must be a whole number; got '2'."),
        ("ticks", 0, "A mini-batch visits the blocks once or more; got ticks=0."),
        ("readout", ow.GoodnessSweep(), "Use ow.LabelEmbedding(2), or another readout."),
    ],
)
def test_a_network_is_of_blocks_a_sampler_and_a_readout(name, value, says):
    refuses(lambda: network(**{name: value}), says)


def test_numbers_of_numpy_and_lists_are_taken():
    made = network(
        block(), block(module=nn.Linear(UNITS, UNITS), reads=[0]), num_classes=np.int64(2)
    )

    assert made.num_classes == 2


class Sampler(ow.Sampler):
    made = None

    def views(self, batch, draw, hints):
        return batch if self.made is None else {name: batch for name in self.made}


@pytest.mark.parametrize("names", [None, "input"])
def test_a_sampler_names_its_views(names):
    sampler = Sampler()
    if names is not None:
        sampler.names = names

    refuses(lambda: network(sampler=sampler), "The sampler Sampler needs `names`, a tuple of the v")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (None, "makes a Batch; its `views` returns a dict of ow.Batch by name."),
        (("other",), "makes the views other, and its names are input."),
    ],
)
def test_a_sampler_makes_the_views_that_it_names(made, says):
    sampler = Sampler()
    sampler.names, sampler.made = ("input",), made

    refuses(lambda: train(network(sampler=sampler), training=QUICK), f"The sampler Sampler {says}")


# Training


@pytest.mark.parametrize(
    "dataset",
    [
        torch.utils.data.TensorDataset(torch.zeros(2, 4)),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(2, 4))),
        (np.zeros((4, 4)), np.zeros(4)),
        "digits",
    ],
)
def test_what_is_no_data_set_is_refused_with_how_to_make_one(dataset):
    says = "ow.train: dataset must be an ow.Dataset: ow.dataset(x, y) makes one of arrays, tensor"

    refuses(lambda: train(dataset=dataset), says)


@pytest.mark.parametrize(
    ("trained", "got"),
    [
        (lambda: [network(), network()], "got a list that holds a Network."),
        (lambda: nn.Linear(3, 3), "got a Linear of torch."),
        (lambda: [block()], "got a list that holds a Block."),
    ],
)
def test_what_is_neither_network_nor_stages_is_refused(trained, got):
    says = "ow.train also takes stages, [ow.Stage(network=...), ...]"

    refuses(lambda: train(trained()), says, got)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("listener", print, "must be an ow.Listener, such as ow.CSVLog"),
        ("listener", ow.Listener, "got the class Listener, not an instance."),
        ("augment", ow.Flip, "got the class Flip, not an instance."),
        ("training", {"epochs": 3}, "must be an ow.TrainingConfig, such as ow.TrainingConfig(ep"),
        ("training", ow.PlanConfig(), "got a PlanConfig."),
        ("plan", "stream", "must be an ow.PlanConfig, such as ow.PlanConfig(kind='stream'); got"),
        ("placement", "stream", "must be an ow.PlacementConfig, such as ow.PlacementConfig(name="),
    ],
)
def test_other_arguments_of_a_training_are_held_against_their_types(name, value, says):
    refuses(lambda: train(**{name: value}), f"ow.train: {name} must be", says)


def test_a_stage_has_a_plan_of_its_own():
    refuses(
        lambda: ow.Stage(network=network(), plan="stream"), "ow.Stage: plan must be an ow.PlanC"
    )


@pytest.mark.parametrize("config", [ow.RECIPES["one-pass"], "one-pass"])
def test_a_run_is_of_its_settings(config):
    refuses(lambda: ow.run(config), "ow.run: config must be an ow.RunConfig", "method=recipe")


@pytest.mark.parametrize("policy", ["margin", object()])
def test_what_is_no_exit_policy_is_refused(policy):
    x = torch.zeros(3, INPUTS)

    refuses(lambda: ow.answer(network(), x, policy), "ow.answer: policy must be an ow.ExitPolicy")


def test_what_is_calibrated_has_its_policy():
    says = "what ow.calibrate returns has it as its `policy`; got a Calibrated."
    found = ow.Calibrated(*[None] * 10)

    refuses(lambda: ow.answer(network(), torch.zeros(3, INPUTS), found), says)


# Settings


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: ow.PlanConfig(kind="streams"),
            "plan.kind must be one of chapters, stream; got 'streams'. Did you mean stream?",
        ),
        (lambda: ow.TrainingConfig(epochs=0), "training.epochs must be a whole number of 1 or mor"),
        (lambda: ow.NetworkConfig(widths=64), "network.widths must be whole numbers separated"),
        (lambda: ow.OptimizerConfig(lr=-1), "optimizer.lr must be a number above 0; got -1."),
        (lambda: ow.PlacementConfig(processes=1.5), "placement.processes must be a whole number"),
        (lambda: ow.DataConfig(name=3), "data.name must be text; got 3."),
        (
            lambda: ow.RECIPES["conv"].settings(channels=6),
            "network.channels must be whole numbers separated",
        ),
        (lambda: ow.RunConfig(training={"epochs": 3}), "training must be an ow.TrainingConfig"),
        (
            lambda: ow.RunConfig(network={"widths": 3}),
            "network must be a NetworkConfig, the settin",
        ),
        (lambda: ow.RunConfig(recipe=ow.RECIPES["pff"]), "recipe must be the name of a recipe; g"),
        (lambda: ow.RunConfig(method="pff"), "method must be a recipe, such as ow.load_recipe("),
        (
            lambda: ow.RunConfig(recipe="x.py:f"),
            "ow.RunConfig(method=ow.load_recipe('x.py:f'))",
        ),
        (lambda: ow.mlp(64, num_classes=10), "ow.mlp: input_shape must be a tuple of whole numbe"),
    ],
)
def test_settings_are_checked_when_they_are_made(make, says):
    refuses(make, says)


def test_settings_are_read_by_their_types_when_they_are_made():
    assert ow.NetworkConfig(widths=[3, 4]).widths == (3, 4)
    assert ow.TrainingConfig(epochs="3").epochs == 3


# What does not fit the data


@pytest.mark.parametrize("kind", ["chapters", "stream"])
def test_batch_normalisation_of_a_last_mini_batch_of_one_sample_is_refused(kind):
    module = nn.Sequential(nn.Linear(INPUTS, UNITS), nn.BatchNorm1d(UNITS))
    before = module[1].running_mean.clone()

    says = refuses(
        lambda: train(network(block(module=module)), training=QUICK, plan=ow.PlanConfig(kind=kind)),
        "BatchNorm1d takes means over a mini-batch, and of 41 samples in mini-batches of 10 the l",
    )

    size = int(re.search(r"training\.batch_size to (\d+)", says)[1])
    assert module[1].running_mean.equal(before)
    train(network(block(module=module)), training=ow.TrainingConfig(epochs=1, batch_size=size))


def test_batch_normalisation_of_mini_batches_of_one_is_refused():
    module = nn.Sequential(nn.Linear(INPUTS, UNITS), nn.BatchNorm1d(UNITS))
    single = ow.TrainingConfig(epochs=1, batch_size=1)

    refuses(
        lambda: train(network(block(module=module)), training=single),
        "of 41 samples in mini-batches of 1 all have one sample. Set training.batch_size to 3.",
    )


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("supcon", "SupervisedContrast compares the samples of a mini-batch, and of 1293 samples"),
        ("iffcl", "A mini-batch of one sample has no other to be compared or mixed with."),
    ],
)
def test_samples_that_are_compared_are_not_alone_in_the_last_mini_batch(recipe, says):
    changes = {"training.batch_size": 4, "network.widths": (8, 8), "plan.kind": "stream"}

    refuses(lambda: ow.run(ow.RunConfig(recipe=recipe).with_settings(changes)), says)


def test_batch_normalisation_over_places_may_see_one_sample():
    module = nn.Sequential(nn.Unflatten(1, (1, INPUTS)), nn.BatchNorm1d(1), nn.Flatten())
    whole = block(module=module, objective=ow.CrossEntropy(nn.Linear(INPUTS, CLASSES)))

    assert train(network(whole), training=QUICK) is not None


def test_a_head_of_another_width_is_refused_with_both_sizes():
    head = ow.CrossEntropy(nn.Linear(UNITS + 1, CLASSES))

    says = refuses(
        lambda: train(network(block(objective=head)), training=QUICK),
        "The block puts out 6 numbers a sample, and its head takes 7",
    )

    assert "nn.Flatten" not in says


def test_a_head_behind_places_is_told_of_flatten():
    module = nn.Sequential(nn.Unflatten(1, (1, INPUTS)), nn.Conv1d(1, 3, 1))
    head = ow.CrossEntropy(nn.Linear(3 * INPUTS, CLASSES))

    says = "A linear head behind a convolution needs nn.Flatten before it."
    refuses(lambda: train(network(block(module=module, objective=head)), training=QUICK), says)


class Broken(nn.Linear):
    def forward(self, x):
        return x, self.nothing


def test_what_fails_in_a_module_is_told_with_its_line_and_stays_the_cause():
    with pytest.raises(
        SettingError, match=r"reads: .*test_arguments\.py:\d+: AttributeError"
    ) as it:
        train(network(block(module=Broken(INPUTS, UNITS))), training=QUICK)

    assert isinstance(it.value.__cause__, AttributeError)


# Data sets


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"num_classes": 2.0}, "ow.dataset: num_classes must be a whole number; got 2.0."),
        ({"num_classes": "2"}, "ow.dataset: num_classes must be a whole number; got '2'."),
        ({"test": None}, "ow.dataset: test must be a fraction below 1, or a number of samples; go"),
        ({"test": True}, "ow.dataset: test must be a fraction below 1, or a number of samples; go"),
        ({"is_image": 1}, "ow.dataset: is_image must be True or False; got 1."),
    ],
)
def test_arguments_of_a_data_set_are_held_against_their_types(given, says):
    refuses(lambda: ow.dataset(np.eye(10), np.arange(10) % 2, **given), says)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"test": None}, "ow.load_data: test must be a fraction below 1, or a number of samples"),
        ({"label": 3}, "ow.load_data: label must be the name of a column, or the path of an .npy"),
        ({"data_dir": 3}, "ow.load_data: data_dir must be a path; got 3."),
        ({"name": None}, "ow.load_data: name must be a text, such as 'mnist'; got None."),
    ],
)
def test_arguments_of_data_that_are_loaded_are_held_against_their_types(given, says):
    refuses(lambda: ow.load_data(**{"name": "digits", **given}), says)


# Results


def test_a_result_is_shown_in_a_line():
    result = train(training=QUICK)

    assert repr(result) == f"<Result: custom on arrays, test accuracy {result.accuracy:.2%}>"
