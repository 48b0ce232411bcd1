"""Tables and sparse matrices as samples: their columns by name, and what is refused."""

from decimal import Decimal

import numpy as np
import pytest
import scipy.sparse
import torch

import onward as ow
from onward.data import read_shared, tables, write_shared
from onward.data.inputs import InputTransformation
from onward.data.numbers import real
from onward.data.tables import in_order, places, table_numbers
from onward.runs.sharding import agree, describe, local_shards, split

pandas = pytest.importorskip("pandas")

ROWS = 60
Y = np.where(np.arange(ROWS) % 2, "yes", "no")


def people(samples=ROWS):
    """Columns of three types, of which age tells the classes apart."""
    random = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "age": random.normal(3 * (Y[:samples] == "yes"), 1),
            "children": random.integers(0, 4, samples),
            "member": random.random(samples) < 0.5,
        }
    )


@pytest.fixture(scope="module")
def trained():
    dataset = ow.dataset(people(), Y, name="people")
    network = ow.mlp((3,), num_classes=2, widths=(16, 16))
    ow.train(network, dataset, training=ow.TrainingConfig(epochs=3, batch_size=10))
    return network, dataset


def test_columns_become_numbers_and_are_remembered_by_name(trained):
    network, dataset = trained

    table = people()
    expected = np.stack([table[name].to_numpy(float) for name in table], axis=1)
    whole = torch.cat([dataset.x, dataset.x_test])
    assert sorted(map(tuple, whole.tolist())) == sorted(
        map(tuple, expected.astype(np.float32).tolist())
    )
    assert dataset.feature_names == network.inputs.feature_names == ("age", "children", "member")


def test_columns_in_another_order_and_others_beside_them_change_no_score(trained):
    network, _ = trained
    table = people()
    expected = network.scores(table.to_numpy(np.float32)).network

    shuffled = table.assign(city="Rome")[["city", "member", "age", "children"]]

    assert torch.equal(network.scores(table).network, expected)
    assert torch.equal(network.scores(shuffled).network, expected)


def test_tables_of_polars_are_read_too(trained):
    polars = pytest.importorskip("polars")
    network, _ = trained
    table = people()

    other = polars.DataFrame({name: table[name].to_numpy() for name in reversed(table.columns)})

    assert torch.equal(network.scores(other).network, network.scores(table).network)


def test_a_column_that_is_missing_is_refused(trained):
    network, _ = trained

    with pytest.raises(
        ow.DataError, match=r"x lacks the columns 'children', 'member' of the train"
    ):
        network.predict(people()[["age"]])


def test_columns_without_names_are_taken_in_their_order(trained):
    network, _ = trained
    table = people()
    expected = network.scores(table).network

    table.columns = range(3)

    assert torch.equal(network.scores(table).network, expected)
    assert ow.dataset(table, Y).feature_names is None


def test_names_of_columns_are_saved_and_loaded(trained, tmp_path):
    network, _ = trained
    ow.save(network, tmp_path / "m.safetensors")

    loaded = ow.load(tmp_path / "m.safetensors")

    assert loaded.inputs.feature_names == ("age", "children", "member")
    with pytest.raises(ow.DataError, match="lacks the column 'age'"):
        loaded.predict(people()[["children", "member"]])


def test_names_of_columns_are_in_the_state_dict(trained):
    network, _ = trained
    other = ow.mlp((3,), num_classes=2, widths=(16, 16))

    other.load_state_dict(network.state_dict())

    assert other.inputs.feature_names == ("age", "children", "member")


@pytest.mark.parametrize("names", [["a"], ["a", 1, "c"], "abc"])
def test_names_that_do_not_fit_are_refused_in_a_file(names):
    found = InputTransformation("numbers", (3,)).to_json() | {"feature_names": names}

    with pytest.raises(ValueError, match="feature_names is"):
        InputTransformation.from_json(found, None, None)


def test_data_in_another_order_are_evaluated_as_those_of_the_training(trained):
    network, dataset = trained
    shuffled = ow.dataset(people()[["member", "children", "age"]], Y)

    found = ow.evaluate(network, shuffled)

    assert found.correct == ow.evaluate(network, dataset).correct
    assert found.samples == 12


def test_data_that_lack_a_column_are_not_evaluated(trained):
    network, _ = trained

    with pytest.raises(ow.DataError, match="lacks the column 'member' of the training sam"):
        ow.evaluate(network, ow.dataset(people()[["age", "children"]], Y))


def test_further_training_with_columns_in_another_order_is_refused(trained):
    network, _ = trained
    shuffled = ow.dataset(people()[["member", "children", "age"]], Y)

    with pytest.raises(ow.SettingError, match="other columns than the data have, or in another"):
        ow.train(network, shuffled)
    assert network.inputs.feature_names == ("age", "children", "member")


def test_test_samples_may_have_columns_in_another_order():
    table = people()

    dataset = ow.dataset(table, Y, x_test=table[["member", "age", "children"]], y_test=Y)

    assert torch.equal(dataset.x, dataset.x_test)
    with pytest.raises(ow.DataError, match="arrays: x_val lacks the column 'age'"):
        ow.dataset(table, Y, x_val=table[["member", "children"]], y_val=Y)


def test_ranks_with_other_columns_are_refused():
    config = ow.RunConfig().with_settings({"data.name": "own-{rank}.npz"})
    table, notes = people(), []
    for rank, names in enumerate((table.columns, table.columns[::-1])):
        dataset = split(config, ow.dataset(table[names], Y))
        notes.append(describe(config, local_shards(config, dataset, rank), dataset))

    with pytest.raises(
        ow.DataError, match="samples with other names of columns, or in another order"
    ):
        agree(config, notes)
    agree(config, notes[:1])


def test_names_of_columns_reach_processes_that_share_data(tmp_path, trained):
    _, dataset = trained
    dataset = ow.dataset(people(), Y, x_val=people(), y_val=Y)

    write_shared(dataset, tmp_path / "shared")

    assert read_shared(tmp_path / "shared").feature_names == dataset.feature_names


def test_a_data_set_has_a_name_for_each_column():
    batch = ow.Batch(torch.zeros(4, 3), {"label": torch.arange(4) % 2})

    with pytest.raises(ow.DataError, match=r"2 feature_names, and samples have the shape \(3,\)"):
        ow.Dataset(training=batch, test=batch, num_classes=2, feature_names=("a", "b"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"city": ["a", "b"], "n": [1, 2]}, "t has no numbers in the column 'city'. Leave them"),
        ({"n": [1.0, None]}, "t: 1 value is missing, in the column 'n', the first in row 1, cou"),
        ({"n": [None, True]}, "t: 1 value is missing, in the column 'n', the first in row 0, c"),
        ({"at": np.array(["2020", "2021"], "datetime64[s]")}, "t has no numbers in the column 'at"),
        ({f"c{n}": ["x"] for n in range(9)}, "'c0', 'c1', 'c2', 'c3', 'c4', ... (9 names)"),
    ],
)
def test_columns_that_are_no_numbers_are_refused(columns, message):
    with pytest.raises(ow.DataError) as refused:
        table_numbers(pandas.DataFrame(columns), "t")

    assert message in str(refused.value)


def test_missing_values_of_nullable_types_are_refused():
    table = pandas.DataFrame({"n": pandas.array([1, None, 3], dtype="Int64")})

    with pytest.raises(
        ow.DataError, match="value is missing, in the column 'n', the first in row 1"
    ):
        table_numbers(table, "t")


def test_two_columns_of_one_name_are_refused():
    table = pandas.concat([people(), people()], axis=1)

    with pytest.raises(ow.DataError, match="x has 2 columns with the name 'age'"):
        ow.dataset(table, Y)
    with pytest.raises(ow.DataError, match="x has 2 columns with the name 'age'"):
        in_order(table, ("member",), "x")


def test_a_table_that_is_too_wide_is_refused(monkeypatch):
    monkeypatch.setattr(tables, "MOST_COLUMNS", 2)

    with pytest.raises(ow.DataError, match="x has 3 columns, more than the 2 that are taken"):
        ow.dataset(people(), Y)


def test_columns_of_bytes_are_numbers_and_no_pixels():
    table = pandas.DataFrame({"a": np.uint8([0, 1] * 30), "b": np.uint8([255, 0] * 30)})

    assert real(table, "x").dtype == np.float32
    assert torch.equal(ow.dataset(table, Y).x, ow.dataset(table.astype(int), Y).x)


def test_a_series_of_names_gives_classes():
    dataset = ow.dataset(people(), pandas.Series(Y, dtype="category"))

    assert dataset.class_names == ("no", "yes")


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.coo_matrix])
def test_sparse_matrices_are_written_out(kind, trained):
    network, _ = trained
    dense = people().to_numpy(np.float32)

    dataset = ow.dataset(kind(dense), Y)

    assert dataset.x.shape == (48, 3)
    assert torch.equal(network.scores(kind(dense)).network, network.scores(dense).network)


@pytest.mark.parametrize("kind", [np.uint8, bool, np.int64])
def test_whole_numbers_of_a_sparse_matrix_are_no_pixels(kind):
    counts = np.arange(3 * ROWS).reshape(ROWS, 3) % 5

    dataset = ow.dataset(scipy.sparse.csr_array(counts.astype(kind)), Y, test=2)

    assert dataset.x.dtype == torch.float32
    assert dataset.x.max() == (1 if kind is bool else 4)


def of_columns(kind, **columns):
    return pandas.DataFrame({name: column.astype(kind) for name, column in columns.items()})


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_a_column_that_is_lost_in_float32_is_named(kind):
    rows = np.arange(ROWS)
    given = of_columns(kind, age=rows, time=1_600_000_000 + rows, same=rows * 0 + 10**9)

    with pytest.warns(ow.OnwardWarning, match="in the column 'time', numbers differ by less than "):
        ow.dataset(given, Y)
    with pytest.warns(ow.OnwardWarning, match=r"x: in the column '1', numbers .* 0\.0002%"):
        ow.dataset(given.to_numpy(), Y)


@pytest.mark.filterwarnings("error")
def test_columns_that_float32_holds_are_not_warned_of():
    rows = np.arange(ROWS)

    ow.dataset(of_columns(np.float64, days=1_600_000_000 + 86_400 * rows, small=1e-9 * rows), Y)
    ow.dataset(of_columns(np.int64, number=10**6 + rows), Y)
    ow.dataset(np.where(rows % 2, 0.3, 0.1 + 0.2)[:, None].repeat(2, axis=1), Y)


def test_a_sparse_matrix_without_room_for_its_zeros_is_refused():
    matrix = scipy.sparse.csr_array((10**6, 10**8), dtype=np.float32)

    with pytest.raises(ow.DataError, match=r"is sparse, of shape .* it takes 400,000.0 GB, and"):
        ow.dataset(matrix, np.arange(10**6) % 2)


def test_a_row_of_a_table_is_read_by_the_names_of_its_columns(trained):
    network, _ = trained
    table = people()
    expected = network.scores(table.to_numpy(np.float32)[:1]).network

    for row in (table.iloc[0], table[["member", "age", "children"]].iloc[0]):
        assert torch.equal(network.scores(row).network, expected)
    with pytest.raises(ow.DataError, match="x lacks the column 'age' of the training samples"):
        network.predict(table[["children", "member"]].iloc[0])


def test_labels_with_an_index_of_their_own_are_labels():
    labels = pandas.Series(np.arange(ROWS) % 2, index=[f"patient {n}" for n in range(ROWS)])

    assert ow.dataset(people(), labels).num_classes == 2


@pytest.mark.parametrize(
    "names",
    [
        [2001, 2002, 2003],
        ["a", 7, "b"],
        pandas.MultiIndex.from_tuples([("blood", "iron"), ("blood", "salt"), ("age", "")]),
    ],
)
def test_names_of_other_types_are_names_too(names):
    table = people()
    table.columns = names
    network = ow.mlp((3,), num_classes=2, widths=(8, 8))
    ow.train(network, ow.dataset(table, Y), training=ow.TrainingConfig(epochs=1, batch_size=10))
    expected = network.scores(table).network

    turned = table[list(reversed(list(table.columns)))]

    assert torch.equal(network.scores(turned).network, expected)


def test_tables_of_arrow_are_read_by_name(trained):
    pyarrow = pytest.importorskip("pyarrow")
    network, _ = trained
    table = people()

    other = pyarrow.Table.from_pandas(table[["member", "age", "children"]])

    assert torch.equal(network.scores(other).network, network.scores(table).network)


def test_numbers_in_columns_of_objects_are_numbers():
    mixed = pandas.DataFrame({"a": [Decimal("1.5"), 2], "b": [np.float32(1), True]}, dtype=object)

    assert table_numbers(mixed, "t").tolist() == [[1.5, 1.0], [2.0, 1.0]]
    with pytest.raises(ow.DataError, match="has no numbers in the column 'a'"):
        table_numbers(pandas.DataFrame({"a": [10**400, 1]}), "t")


def test_columns_of_lists_are_no_numbers():
    polars = pytest.importorskip("polars")
    table = polars.DataFrame({"a": [[1, 2], [3, 4]]}, schema={"a": polars.Array(polars.Int64, 2)})

    with pytest.raises(ow.DataError, match="has no numbers in the column 'a'"):
        table_numbers(table, "t")


@pytest.mark.parametrize("kind", [">f8", np.longdouble, ">i4", "uint16"])
def test_numbers_of_other_machines_are_read_as_they_are(kind, trained):
    network, _ = trained
    x = np.round(people().to_numpy(float) * 3).clip(0)

    found = network.scores(x.astype(kind)).network

    assert torch.equal(found, network.scores(x.astype(np.float32)).network)
    labels = (np.arange(ROWS) % 2).astype(kind)
    assert ow.dataset(x.astype(kind), labels).num_classes == 2


@pytest.mark.parametrize("kind", [">i4", "uint16", float, object])
def test_classes_that_a_network_is_compared_with_are_read_like_those_of_data(kind):
    x, y = np.eye(40), np.arange(40) % 2
    network = ow.mlp((40,), num_classes=2, widths=(8, 8))
    ow.train(network, ow.dataset(x, y), training=ow.TrainingConfig(epochs=1, batch_size=10))
    expected = ow.evaluate(network, x, y).correct

    if kind is not object:
        assert ow.evaluate(network, x, y.astype(kind)).correct == expected
    labels = pandas.Series(y)
    assert ow.evaluate(network, x, labels).correct == expected
    with pytest.raises(ow.DataError, match="y holds nan in row 3"):
        ow.evaluate(network, x, np.where(np.arange(40) == 3, np.nan, y))


def test_sparse_tensors_of_torch_are_written_out(trained):
    network, _ = trained
    dense = torch.from_numpy(people().to_numpy(np.float32))

    assert torch.equal(network.scores(dense.to_sparse()).network, network.scores(dense).network)


def test_wide_tables_are_put_in_order_quickly():
    names = [f"c{n}" for n in range(20_000)]

    assert places(names, names[::-1], "x")[:3] == [19_999, 19_998, 19_997]


def test_groups_may_have_names():
    groups = np.array([f"patient {n // 6}" for n in range(ROWS)])

    dataset = ow.dataset(people(), Y, groups=groups)

    assert len(dataset.groups.unique()) == 8


@pytest.mark.parametrize(
    ("labels", "advice"),
    [
        (np.arange(ROWS)[:, None] % 2, r"Give y\.ravel\(\)"),
        (np.eye(2)[np.arange(ROWS) % 2], r"Of a column for each class: y\.argmax\(1\)"),
    ],
)
def test_labels_of_usual_shapes_are_refused_with_what_to_do(labels, advice):
    with pytest.raises(ow.DataError, match=advice):
        ow.dataset(people(), labels)


def test_numbered_columns_are_put_in_order():
    x = np.arange(40.0).reshape(10, 4)
    trained = ow.dataset(pandas.DataFrame(x), np.arange(10) % 2)
    turned = ow.dataset(pandas.DataFrame(x)[[3, 1, 2, 0]], np.arange(10) % 2)

    assert trained.feature_names is None
    assert turned.feature_names == ("3", "1", "2", "0")
    for names, order in ((None, [0, 1, 2, 3]), (turned.feature_names, [3, 1, 2, 0])):
        found = in_order(pandas.DataFrame(x)[[2, 0, 3, 1]], names, "x")
        assert (found.to_numpy() == x[:, order]).all()


def test_a_table_of_one_column_may_be_the_classes():
    names = pandas.DataFrame({"kind": ["cat", "dog"] * 5})

    assert ow.dataset(np.eye(10), names).class_names == ("cat", "dog")


def test_samples_and_classes_of_one_index_in_two_orders_are_refused():
    table, classes = people(), pandas.Series(Y)

    with pytest.raises(ow.DataError, match=r"same index in another order.*y\.loc\[x\.index\]"):
        ow.dataset(table.iloc[::-1], classes)

    ow.dataset(table.iloc[::-1], classes.loc[table.index[::-1]])
    ow.dataset(table.iloc[::-1].reset_index(drop=True), classes)
    ow.dataset(table.set_index(np.arange(ROWS) + 5), classes)


def test_the_first_values_that_are_no_number_among_many_are_named():
    table = people().astype({"age": str}).assign(other=1.0)
    table.loc[[7, 9], "age"] = "?"

    said = r"the column 'age' has numbers, but for 2 of 60 values, the first '\?' in row 7"
    with pytest.raises(ow.DataError, match=said):
        ow.dataset(table, Y)


def test_a_table_without_classes_is_told_that_there_is_no_y():
    with pytest.raises(ow.DataError, match=r'there is no y.*x\.drop\(columns="kind"\)'):
        ow.dataset(people().assign(kind=Y))
