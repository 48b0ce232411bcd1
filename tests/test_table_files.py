"""Tables in files, from the first line to the prediction."""

import csv

import numpy as np
import pytest
import torch
from commands import onward

import onward as ow
from onward.data import table_files
from onward.data.arrays import read_npy
from onward.data.table_files import read_frame
from onward.errors import DataError

pandas = pytest.importorskip("pandas")

KINDS = np.array(["setosa", "virginica"])[np.arange(40) % 2]


def flowers():
    """Two columns, of which width tells the kinds apart."""
    random = np.random.default_rng(0)
    width = np.where(KINDS == "setosa", -2, 2) + random.normal(0, 0.5, 40)
    return pandas.DataFrame({"length, cm": random.normal(0, 1, 40), "width": width, "kind": KINDS})


def written(table, path, **options):
    """Write a table to a file, and return its path."""
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(
        path, index=False, **options
    )
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("t.csv", {}),
        ("t.csv", {"sep": ";"}),
        ("t.csv", {"sep": "\t"}),
        ("t.csv", {"encoding": "utf-8-sig"}),
        ("t.parquet", {}),
    ],
)
def test_all_columns_but_the_label_are_samples(name, options, tmp_path):
    table = flowers()

    dataset = ow.load_data(str(written(table, tmp_path / name, **options)), label="kind")

    expected = ow.dataset(table.drop(columns="kind"), KINDS)
    assert dataset.feature_names == ("length, cm", "width")
    assert dataset.class_names == ("setosa", "virginica")
    assert torch.equal(dataset.x, expected.x)
    assert torch.equal(dataset.y, expected.y)
    assert torch.equal(dataset.y_test, expected.y_test)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([3, 5, 10, 3] * 5, ("3", "5", "10")),
        ([1.0, 2.0, 1.0, 2.0] * 5, ("1", "2")),
        ([True, False] * 10, ("False", "True")),
    ],
)
def test_numbers_of_classes_are_names_and_may_begin_anywhere(labels, names, tmp_path):
    table = pandas.DataFrame({"a": np.arange(20.0), "y": labels})

    dataset = ow.load_data(str(written(table, tmp_path / "t.csv")), label="y")

    assert dataset.class_names == names


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "Which column of {path} has the classes? Name it as label (--label COLUMN). There "),
        (
            "Kind",
            "{path} has no column 'Kind'. Did you mean 'kind'? There are the columns 'length,",
        ),
        ("city", "{path} has no column 'city'. There are the columns 'length, cm', 'width', 'kind"),
        ("width", "t.csv: the column 'width' holds -"),
    ],
)
def test_a_column_that_has_no_classes_is_refused(label, message, tmp_path):
    path = written(flowers(), tmp_path / "t.csv")

    with pytest.raises(DataError) as refused:
        ow.load_data(str(path), label=label)

    assert str(refused.value).startswith(message.format(path=path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "5.1,3.5,a\n1,2,b\n",
            "has numbers in its first line, such as 5.1, where names of columns",
        ),
        ("7,0,0\n1,0,0\n", "has numbers in its first line, such as 7, where names of columns are"),
        (",a,y\n0,1,b\n1,2,c\n", "has a column without a name. If it numbers the rows, leave it o"),
        ("a,,y\n0,1,b\n1,2,c\n", "has a column without a name. If it numbers the rows, leave it o"),
        ("y,a,y\n0,1,0\n1,2,1\n", "has 2 columns with the name 'y'. Rename them."),
        ("age,income,y\n1,20,3,ja\n2,30,4,no\n", "has lines with more columns than its first lin"),
        ("a|b|y\n1|2|q\n", "has no column 'y'. Its only column is 'a|b|y': is there another sep"),
        ("a,Y\n1,b\n2,c\n", "has no column 'y'. Did you mean 'Y'?"),
        ("a,y\n1,b\n2,\n", "the column 'y' is empty in row 1, counted from 0. Leave"),
        ("a,b,y\n1,,q\n2,x,r\n", "has no numbers in the column 'b'. Leave them out"),
        ("a,b,y\n1,,q\n2,3,r\n", "1 value is missing, in the column 'b', the first in row 0,"),
        ("a,y\n1,b,3,4\n", "has lines with more columns than its first line, which names 2."),
        ("", "cannot be read as a .csv file: No columns to parse from file."),
    ],
)
def test_a_table_that_would_be_misread_is_refused(text, message, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text)

    with pytest.raises(DataError) as refused:
        ow.load_data(str(path), label="y")

    assert message in str(refused.value)


@pytest.mark.parametrize("first", [0, 1, 500])
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_first_column_that_numbers_the_rows_is_refused(first, name, tmp_path):
    numbers = np.random.default_rng(0).permutation(40) + first
    table = flowers()
    table.insert(0, "id", numbers)

    with pytest.raises(
        DataError, match=r"The first column of .*, 'id', numbers the rows, which te"
    ):
        ow.load_data(str(written(table, tmp_path / name)), label="kind")


def test_lines_may_end_in_a_separator(tmp_path):
    (tmp_path / "t.csv").write_text("a;b;y;\n1;2;q;\n2;1;r;\n1;2;q;\n2;1;r;\n1;2;q;\n")

    dataset = ow.load_data(str(tmp_path / "t.csv"), label="y")

    assert dataset.feature_names == ("a", "b")


def test_separators_in_quotes_separate_nothing(tmp_path):
    (tmp_path / "t.csv").write_text('"a, x, z, w";b;y\n' + "1;2;q\n2;1;r\n" * 5)

    dataset = ow.load_data(str(tmp_path / "t.csv"), label="y")

    assert dataset.feature_names == ("a, x, z, w", "b")


def test_numbers_may_have_decimal_commas_where_semicolons_separate(tmp_path):
    table = flowers()

    path = written(table, tmp_path / "t.csv", sep=";", decimal=",")

    expected = ow.dataset(table.drop(columns="kind"), KINDS)
    assert torch.equal(ow.load_data(str(path), label="kind").x, expected.x)
    # Also where there are no classes, and one column has fractions.
    path = written(table[["width"]], tmp_path / "new.csv", sep=";", decimal=",")
    path.write_text(f"n;{path.read_text()}".replace("\n", "\n1;").removesuffix("1;"))
    assert read_frame(path)["width"].tolist() == table["width"].tolist()


def test_classes_are_what_is_written(tmp_path):
    names = ["007", "7", "NA", "None", "1e3"] * 4
    lines = "".join(f"{number % 3}.5, {name} \n" for number, name in enumerate(names))
    (tmp_path / "t.csv").write_text(f"a, kind \n{lines}")

    dataset = ow.load_data(str(tmp_path / "t.csv"), label="kind")

    assert set(dataset.class_names) == {"007", "7", "NA", "None", "1e3"}


def test_bytes_name_classes_and_lists_do_not(tmp_path):
    table = pandas.DataFrame({"a": np.arange(20.0), "y": [b"ja", b"no"] * 10, "z": [[1], [2]] * 10})
    path = str(written(table[["a", "y"]], tmp_path / "t.parquet"))

    assert ow.load_data(path, label="y").class_names == ("ja", "no")
    written(table[["a", "z"]], tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"holds .* in row 0\. Classes are names or numbers."):
        ow.load_data(path, label="z")


def test_columns_may_have_numbers_for_names(tmp_path):
    table = pandas.DataFrame({"0": np.arange(20.0), "1": np.ones(20), "y": ["a", "b"] * 10})

    dataset = ow.load_data(str(written(table, tmp_path / "t.csv")), label="y")

    assert dataset.feature_names == ("0", "1")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_files_of_other_bytes_are_refused_in_a_sentence(name, tmp_path):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00PAR1" * 20)

    with pytest.raises(DataError, match=r"cannot be read as a \.parquet file: |is not in UTF-8"):
        ow.load_data(str(tmp_path / name), label="y")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_that_is_too_wide_is_refused_before_it_is_read(name, tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "MOST_COLUMNS", 2)

    with pytest.raises(DataError, match="has 3 columns, more than the 2 that are taken"):
        ow.load_data(str(written(flowers(), tmp_path / name)), label="kind")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_that_is_larger_than_the_memory_is_refused(name, tmp_path, monkeypatch):
    memory = type("Memory", (), {"total": 100})
    monkeypatch.setattr(table_files.psutil, "virtual_memory", lambda: memory)

    with pytest.raises(DataError, match=r"takes 0\.0 GB, and the memory here is 0\.0 GB"):
        ow.load_data(str(written(flowers(), tmp_path / name)), label="kind")


def test_without_pandas_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)

    with pytest.raises(DataError, match=r'pip install "onward\[tables\]"'):
        ow.load_data(str(tmp_path / "t.csv"), label="y")


def test_a_label_for_data_that_have_classes_is_refused():
    with pytest.raises(DataError, match=r"data.label = y is for files that end in \.npy, \.csv, "):
        ow.load_data("digits", label="y")


def predicted(capsys, *arguments):
    """Return what the command `predict` has written, row by row."""
    capsys.readouterr()
    assert onward("predict", *arguments) == 0
    return list(csv.reader(capsys.readouterr().out.splitlines()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flowers")
    path = written(flowers(), folder / "flowers.csv")
    flags = ("--epochs", 40, "--widths", "32,32", "--batch-size", 8)
    assert onward("train", "--data", path, "--label", "kind", *flags, "--out", folder / "r") == 0
    return folder / "r"


def test_classes_of_new_rows_are_named_whatever_the_order_of_columns(run, tmp_path, capsys):
    table = flowers()
    path = written(table[["kind", "width", "length, cm"]], tmp_path / "new.csv")

    header, *rows = predicted(capsys, run, path)

    assert header == ["label", "score_setosa", "score_virginica"]
    assert sum(row[0] == kind for row, kind in zip(rows, KINDS, strict=True)) >= 38


def test_a_new_table_that_lacks_a_column_is_refused(run, tmp_path, capsys):
    path = written(flowers()[["length, cm"]], tmp_path / "new.csv")

    assert onward("predict", run, path) == 2
    assert "lacks the column 'width' of the training samp" in capsys.readouterr().err


def test_a_run_is_evaluated_on_another_table_with_its_own_label(run, tmp_path, capsys):
    other = flowers().rename(columns={"kind": "species"}).assign(petals=5)
    path = written(other[["width", "petals", "species", "length, cm"]], tmp_path / "other.csv")
    capsys.readouterr()

    assert onward("evaluate", run, "--data", path, "--label", "species") == 0
    # All of them, and those that the network was trained on are noticed.
    said = capsys.readouterr()
    assert "on the 40 test samples of other.csv" in said.out
    assert "other.csv: about " in said.err
    assert "% of the samples that are counted equal training samples of this network" in said.err
    assert onward("evaluate", run, "--data", path) == 2
    assert "has no column 'kind'" in capsys.readouterr().err


def test_a_label_without_other_data_is_refused(run, capsys):
    assert onward("evaluate", run, "--label", "kind") == 2
    assert "--label is for other data than those of the run" in capsys.readouterr().err


def test_columns_that_number_new_rows_are_left_out(run, tmp_path, capsys):
    table = flowers()
    table.to_csv(tmp_path / "new.csv")
    expected = predicted(capsys, run, written(table, tmp_path / "plain.csv"))

    assert predicted(capsys, run, tmp_path / "new.csv") == expected


def test_new_rows_may_be_of_one_class(run, tmp_path, capsys):
    table = flowers()
    table["length, cm"] += 0.25
    some = table[table["kind"] == "setosa"]
    path = written(some, tmp_path / "new.csv")
    capsys.readouterr()

    assert onward("evaluate", run, "--data", path) == 0
    said = capsys.readouterr()
    assert "on the 20 test samples of new.csv" in said.out
    assert "training samples" not in said.err


def test_the_label_of_a_run_is_not_asked_of_other_kinds_of_files(run, tmp_path, capsys):
    table = flowers()
    x = table[["length, cm", "width"]].to_numpy(np.float32)
    np.savez(tmp_path / "t.npz", x=x, y=KINDS)

    assert onward("evaluate", run, "--data", tmp_path / "t.npz") == 0


def test_other_samples_are_not_paired_with_the_classes_of_the_run(tmp_path, capsys):
    first, second = saved(tmp_path, np.eye(40, dtype=np.float32), np.arange(40) % 2)
    flags = ("--epochs", 1, "--widths", "8,8", "--batch-size", 8, "--out", tmp_path / "r")
    assert onward("train", "--data", first, "--label", second, *flags) == 0
    np.save(tmp_path / "new.npy", np.eye(40, dtype=np.float32)[::-1])
    capsys.readouterr()

    assert onward("evaluate", tmp_path / "r", "--data", tmp_path / "new.npy") == 2
    assert "Name the .npy file with their classes as label" in capsys.readouterr().err


def test_a_run_is_evaluated_on_its_own_table(run, capsys):
    assert onward("evaluate", run) == 0
    assert "on the 8 test samples of flowers.csv" in capsys.readouterr().out


# Pairs of .npy files


def saved(folder, x, y):
    """Write two .npy files, and return their paths."""
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return str(folder / "x.npy"), str(folder / "y.npy")


def test_two_npy_files_are_samples_and_classes(tmp_path):
    x, y = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), np.uint8), np.arange(40) % 4
    first, second = saved(tmp_path, x, y)

    dataset = ow.load_data(first, label=second)

    expected = ow.dataset(x, y)
    assert dataset.x.dtype == torch.uint8
    assert torch.equal(dataset.x, expected.x)
    assert torch.equal(dataset.y, expected.y)
    assert dataset.is_image


def test_an_npy_file_of_texts_names_classes(tmp_path):
    first, second = saved(tmp_path, np.eye(40), KINDS)

    assert ow.load_data(first, label=second).class_names == ("setosa", "virginica")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "x.npy has samples. Name the .npy file with their classes as label (--label FILE)."),
        ("nowhere.npy", "nowhere.npy cannot be read: No such file or directory."),
    ],
)
def test_samples_without_classes_are_refused(label, message, tmp_path):
    first, _ = saved(tmp_path, np.eye(4), np.arange(4))

    with pytest.raises(DataError) as refused:
        ow.load_data(first, label=label)

    assert str(refused.value).endswith(message)


def test_an_npy_file_is_never_unpickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([object()]), allow_pickle=True)

    with pytest.raises(DataError, match="Python objects are never unpickled"):
        read_npy(tmp_path / "x.npy")


@pytest.mark.parametrize("kept", [0, 5, 60, 130])
def test_an_npy_file_that_was_cut_is_refused(kept, tmp_path):
    np.save(tmp_path / "x.npy", np.eye(4))
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:kept])

    with pytest.raises(DataError, match=r"x\.npy cannot be read"):
        read_npy(tmp_path / "x.npy")


def test_an_archive_is_no_npy_file(tmp_path):
    np.savez(tmp_path / "x.npz", np.eye(4))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")

    with pytest.raises(DataError, match=r"x\.npy is no \.npy file"):
        read_npy(tmp_path / "x.npy")


def test_classes_of_an_npy_file_are_predicted(tmp_path, capsys):
    first, second = saved(tmp_path, np.eye(40, dtype=np.float32), np.arange(40) % 2)
    flags = ("--epochs", 1, "--widths", "8,8", "--batch-size", 8, "--out", tmp_path / "r")
    assert onward("train", "--data", first, "--label", second, *flags) == 0

    _, *rows = predicted(capsys, tmp_path / "r", first)

    assert len(rows) == 40


def test_classes_called_like_a_missing_value_are_warned_of_with_their_number(tmp_path, capsys):
    table = flowers().replace({"kind": {"virginica": "Virginica"}})
    table.loc[:2, "kind"] = "NA"
    file = written(table, tmp_path / "t.csv")

    with pytest.warns(ow.OnwardWarning, match=r"t\.csv: 'NA' is a class like others, of 3 samples"):
        dataset = ow.load_data(file, label="kind")
    ow.train(
        ow.mlp((2,), num_classes=3, widths=(4,)),
        dataset,
        training=ow.TrainingConfig(epochs=1, batch_size=10),
        listener=ow.Bars(),
    )

    assert "Note: 3 classes: 'NA', 'Virginica', 'setosa'." in capsys.readouterr().err
