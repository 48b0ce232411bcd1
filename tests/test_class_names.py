"""Classes by name: from the labels to what is printed and predicted."""

import json

import numpy as np
import pytest
import torch
from commands import onward

import onward as ow
from onward import standalone
from onward.errors import DataError, FileError, OnwardWarning, SettingError
from onward.evaluation import as_trained

pytestmark = pytest.mark.usefixtures("unchecked_module")

WORDS = ("cat", "dog", "eel")
SHORT = ow.TrainingConfig(epochs=60, batch_size=10, precision="fp32")


def samples(samples=60):
    """Return samples of which the largest number says the class."""
    y = np.arange(samples) % 3
    draw = np.random.default_rng(0)
    return np.eye(3)[y] + draw.normal(0, 0.1, (samples, 3)), np.array(WORDS)[y]


def network(classes=3):
    return ow.mlp((3,), num_classes=classes, widths=(32,))


def trained():
    x, y = samples()
    return ow.train(network(), ow.dataset(x, y), training=SHORT).network


@pytest.mark.parametrize("kind", [list, np.array, lambda y: np.array(y, dtype=object)])
def test_labels_may_be_names(kind):
    x, y = samples()

    dataset = ow.dataset(x, kind(y.tolist()), x_test=x[:4], y_test=kind(["eel", "cat"] * 2))

    assert (dataset.class_names, dataset.num_classes) == (WORDS, 3)
    assert dataset.y.tolist() == [WORDS.index(name) for name in y]
    assert dataset.y_test.tolist() == [2, 0, 2, 0]


def test_names_may_be_given_in_another_order_and_for_numbers():
    x, y = samples()
    order = ("eel", "dog", "cat", "ape")

    assert ow.dataset(x, y, class_names=order).y.max() == 2
    assert ow.dataset(x, y, class_names=order).num_classes == 4
    assert ow.dataset(x, np.arange(60) % 3, class_names=WORDS).class_names == WORDS


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y": ["cat", 1] * 30}, r"names of classes, and 1 in row 1"),
        ({"y": ["cat", None] * 30}, r"names of classes, and None in row 1"),
        (
            {"y": np.array(["cat", np.nan] * 30, dtype=object)},
            r"names of classes, and nan in row 1",
        ),
        (
            {"y": [f"row {n}" for n in range(60)]},
            r"the 60 samples have a name each .*names of samples\?",
        ),
        ({"y": [["cat"], ["dog"]] * 30}, r"y has the shape \(60, 1\)"),
        ({"y": ["cat", "dog"]}, r"y has the shape \(2,\), but there are 60 samples"),
        (
            {"class_names": ("cat", "dog")},
            r"y has the name 'eel', and the classes are 'cat', 'dog'",
        ),
        ({"class_names": ("cat", "cat", "eel")}, r"two classes have the name 'cat'"),
        ({"class_names": WORDS, "num_classes": 4}, r"3 class_names, and num_classes is 4"),
        ({"x_test": np.eye(3), "y_test": [0, 1, 2]}, r"y has names .*, and y_test has numbers"),
        ({"x_test": np.eye(3), "y_test": ["cat", "dog", "fox"]}, None),
    ],
)
def test_labels_that_do_not_fit_names_are_refused(changes, says):
    x, y = samples()
    given = {"y": y} | changes

    if says is None:
        assert ow.dataset(x, **given).class_names == (*WORDS, "fox")
        return
    with pytest.raises(DataError, match=says):
        ow.dataset(x, **given)


def test_a_network_predicts_names_and_is_evaluated_on_them(tmp_path):
    network, (x, y) = trained(), samples()

    assert network.class_names == WORDS
    assert (network.predict(x) == y).mean() > 0.95
    assert ow.evaluate(network, x, network.predict(x)).accuracy == 1
    assert ow.evaluate(network, x, network.scores(x).network.argmax(dim=1)).accuracy == 1
    ow.save(network, tmp_path / "model.safetensors")
    again = ow.load(tmp_path / "model.safetensors")
    assert again.class_names == WORDS
    assert (again.predict(x) == network.predict(x)).all()


def test_names_that_a_network_does_not_know_are_refused():
    x, y = samples()

    with pytest.raises(DataError, match=r"y has the name 'fox', and the classes are 'cat', 'dog'"):
        ow.evaluate(trained(), x[:2], ["cat", "fox"])
    numbered = ow.train(network(), ow.dataset(x, np.arange(60) % 3), training=SHORT).network
    with pytest.raises(DataError, match="the network was trained on numbers"):
        ow.evaluate(numbered, x, y)


def test_a_network_is_evaluated_on_what_data_sets_take_for_classes():
    pandas = pytest.importorskip("pandas")
    network, (x, y) = trained(), samples()

    assert ow.evaluate(network, x, pandas.DataFrame({"kind": network.predict(x)})).accuracy == 1
    with pytest.raises(DataError, match=r"there are 60 samples and each needs one name: the shape"):
        ow.evaluate(network, x, y[:, None])
    with pytest.raises(DataError, match=r"must be \(60,\)\. Give y\.ravel\(\)\."):
        ow.evaluate(network, x, np.zeros((60, 1)))


def test_numbers_are_names_where_classes_are_named_by_numbers():
    x, _ = samples()
    y = np.arange(60) % 3 + 1
    dataset = ow.dataset(x, y.astype(str))
    network = ow.train(ow.mlp((3,), num_classes=3, widths=(32,)), dataset, training=SHORT).network
    some = y < 3

    expected = (network.predict(x) == y.astype(str))[some].mean()
    assert expected > 0.9
    assert ow.evaluate(network, x[some], y[some]).accuracy == expected
    assert ow.evaluate(network, x[some], y[some].astype(float).tolist()).accuracy == expected
    # As data sets number them.
    counted = ow.evaluate(network, dataset.x_test, dataset.y_test)
    assert counted.accuracy == ow.evaluate(network, dataset).accuracy > 0.9
    with pytest.raises(DataError, match="y has the name '0', and the classes are '1', '2', '3'"):
        ow.evaluate(network, x, y - 1)


def test_further_training_keeps_to_the_classes_and_a_refused_run_changes_nothing():
    x, y = samples()
    known, new = trained(), network()

    with pytest.raises(SettingError, match=r"trained on the classes 'cat', 'dog', 'eel', and the"):
        ow.train(known, ow.dataset(x, np.char.replace(y, "eel", "fox")), training=SHORT)
    assert known.class_names == WORDS
    with pytest.raises(SettingError, match=r"name 3 classes, and the network was built for 4"):
        ow.train(network(4), ow.dataset(x, y), training=SHORT)
    with pytest.raises(SettingError, match="batch_size"):
        ow.train(new, ow.dataset(x, y), training=ow.TrainingConfig(batch_size=1000))
    assert new.class_names is None


def test_a_model_file_with_odd_names_is_refused(tmp_path):
    network = trained()
    for odd in (["cat"], "cat", [1, 2, 3]):
        network.class_names = odd
        ow.save(network, tmp_path / "model.safetensors")
        with pytest.raises(FileError, match="is damaged"):
            ow.load(tmp_path / "model.safetensors")


@pytest.mark.distributed
def test_the_command_prints_and_predicts_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    x, y = samples(200)
    # One class is rare, so that sensitivities are printed; one name is markup and has a comma.
    y = np.where(y == "dog", "[red]dog, big[/]", y)
    keep = (y != "eel") | (np.arange(200) % 4 == 0)
    np.savez("pets.npz", x=x[keep], y=y[keep])
    train = ("train", "one-pass", "--data", "pets.npz", "--set", "network.widths=64")

    length = ("--epochs", 40, "--batch-size", 10)
    assert onward(*train, *length, "--processes", 2, "--out", "two") == 0
    assert onward(*train, *length, "--out", "run") == 0

    assert "sensitivity, class '[red]dog, big[/]'" in capsys.readouterr().out
    found, two = (json.loads((tmp_path / r / "result.json").read_text()) for r in ("run", "two"))
    assert found["weights_sha256"] == two["weights_sha256"]
    assert two["class_names"] == found["class_names"]
    assert found["class_names"] == ["[red]dog, big[/]", "cat", "eel"]
    assert onward("evaluate", "run") == 0
    assert "sensitivity, class 'eel'" in capsys.readouterr().out
    assert onward("predict", "run", "pets.npz") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == 'label,"score_[red]dog, big[/]",score_cat,score_eel'
    named = np.array([line.rsplit(",", 3)[0].strip('"') for line in lines])
    assert (named == y[keep]).mean() > 0.9
    assert onward("predict", "run", "pets.npz", "--out", "named.npz") == 0
    with np.load("named.npz") as file:
        assert file["labels"].tolist() == named.tolist()


@pytest.mark.slow
def test_the_exported_program_prints_names(tmp_path, monkeypatch, capsys):
    network, (x, _) = trained(), samples()
    ow.export(network, tmp_path / "onnx")
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32))
    monkeypatch.setattr("sys.argv", ["infer.py", f"{tmp_path}/onnx", f"{tmp_path}/x.npz"])

    standalone.main()

    named = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert named == network.predict(x).tolist()


def test_a_data_set_with_other_numbers_for_the_same_names_is_scored_by_name(tmp_path, capsys):
    network, (x, y) = trained(), samples()
    some = y != "cat"
    dataset = ow.dataset(x[some], y[some])
    assert dataset.class_names == ("dog", "eel")

    with pytest.warns(OnwardWarning, match="equal training samples of this network"):
        found = ow.evaluate(network, dataset)

    assert (
        found.accuracy
        == (network.predict(dataset.x_test) == np.array(WORDS[1:])[dataset.y_test]).mean()
    )
    assert found.accuracy > 0.9
    with pytest.raises(DataError, match=r"has the name 'fox', and the classes are 'cat'"):
        ow.evaluate(network, ow.dataset(x, np.char.replace(y, "cat", "fox")))
    with pytest.raises(DataError, match="trained on names of classes, and arrays has numbers"):
        ow.evaluate(network, ow.dataset(x, np.arange(60) % 3))


def test_the_command_scores_other_data_by_name(tmp_path, capsys):
    x, y = samples()
    ow.train(network(), ow.dataset(x, y), training=SHORT)
    config = ow.RunConfig(recipe="one-pass").with_settings(
        {"network.widths": (32,), "training.epochs": 60, "training.batch_size": 10}
    )
    ow.run(config, dataset=ow.dataset(x, y), folder=tmp_path / "run")
    some = y != "cat"
    np.savez(tmp_path / "some.npz", x=x[some], y=y[some])

    assert onward("evaluate", tmp_path / "run", "--data", tmp_path / "some.npz") == 0

    out = capsys.readouterr().out
    assert "class 'eel'" in out
    assert "class 'cat'" not in out


def test_a_network_trained_on_numbers_does_not_go_on_with_names_and_the_other_way_round():
    x, y = samples()
    numbered = ow.train(network(), ow.dataset(x, np.arange(60) % 3), training=SHORT).network

    with pytest.raises(
        SettingError, match="on numbered classes, and the data have the classes 'cat'"
    ):
        ow.train(numbered, ow.dataset(x, y), training=SHORT)
    with pytest.raises(
        SettingError, match="'cat', 'dog', 'eel', and the data have numbered classes"
    ):
        ow.train(trained(), ow.dataset(x, np.arange(60) % 3), training=SHORT)


def test_masked_and_encoded_names():
    x, y = samples()

    with pytest.raises(DataError, match="1 masked values"):
        ow.dataset(x, np.ma.array(y, mask=np.arange(60) == 7))
    assert ow.dataset(x, np.char.encode(y)).class_names == WORDS


def test_names_that_are_numbers_are_sorted_as_numbers():
    y = np.arange(60) % 12

    dataset = ow.dataset(np.eye(60), y.astype(str))

    assert dataset.class_names == tuple(map(str, range(12)))


def test_stages_that_name_no_classes_are_read_back(tmp_path):
    x, y = samples()
    config = ow.RunConfig(recipe="uff").with_settings(
        {"network.widths": (8,), "training.epochs": 1, "training.batch_size": 10}
    )

    result = ow.run(config, dataset=ow.dataset(x, y), folder=tmp_path / "run")

    assert result.network.class_names == WORDS
    assert ow.load(tmp_path / "run" / "stage-0").class_names is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("odd", ["abc", {"cat", "dog", "eel"}, [None, 1, 2.5], []])
def test_names_of_classes_are_texts_in_a_list(odd):
    x, y = samples()

    with pytest.raises(DataError, match="class_names are texts in a list"):
        ow.dataset(x, y, class_names=odd)


def test_ranks_with_data_of_their_own_name_the_same_classes(tmp_path):
    config = ow.RunConfig().with_settings({"data.name": "shard-{rank}.npz"})
    x, y = samples()
    notes = []
    from onward.runs.sharding import agree, describe, local_shards, split

    for rank, (own, names) in enumerate(((slice(0, 30), None), (slice(30, 60), None))):
        classes = y[own] if rank == 0 else np.char.replace(y[own], "eel", "cat")
        dataset = split(config, ow.dataset(x[own], classes, class_names=names))
        notes.append(describe(config, local_shards(config, dataset, rank), dataset))

    with pytest.raises(DataError, match=r"different classes: 'cat', 'dog', 'eel' and 'cat', 'dog'"):
        agree(config, notes)


def test_doubts_name_the_class():
    x, y = samples()
    dataset = ow.dataset(x, y)
    stuck = network()
    with torch.no_grad():
        for weights in stuck.blocks[0].objective.parameters():
            weights.zero_()
    for parameter in stuck.parameters():
        parameter.requires_grad_(False)

    with pytest.warns(ow.OnwardWarning, match="classified as class 'cat'"):
        ow.train(stuck, dataset, training=ow.TrainingConfig(epochs=1, batch_size=10))


def test_all_samples_are_renumbered_with_those_of_the_test():
    network, (x, y) = trained(), samples()
    some = y != "cat"
    x, y = x[some], y[some]

    found = as_trained(network, ow.dataset(x, y, x_val=x, y_val=y, x_test=x, y_test=y))

    for batch in (found.training, found.validation, found.test):
        assert np.array(WORDS)[batch.label].tolist() == y.tolist()
    assert (found.class_names, found.num_classes) == (WORDS, 3)
