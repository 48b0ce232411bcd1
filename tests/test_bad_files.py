"""Files and folders that a user can get wrong: a clear sentence, and nothing half-written."""

import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from data_files import QUICK, arrays, idx_bytes, with_values, write_cifar10, write_mnist
from safetensors import safe_open
from safetensors.numpy import save_file

from onward.cli.main import main
from onward.data import published

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


# Data

BROKEN = {
    "no labels": (arrays(y=None), "data.npz lacks y; it has x. Needed: x (samples), y (labels)."),
    "other names": ({"a": np.eye(3)}, "data.npz lacks x and y; it has a."),
    "no samples": (
        arrays(x=np.zeros((0, 4)), y=[]),
        "x has the shape (0, 4). It needs one sample or ",
    ),
    "samples of one axis": (
        arrays(x=np.zeros(40)),
        "x has the shape (40,). It needs one sample or more",
    ),
    "fewer labels": (arrays(y=[0, 1]), "y has the shape (2,), but there are 40 samples and each "),
    "nan": (
        arrays(x=with_values(arrays()["x"], row7=np.nan)),
        "4 values that are NaN or infinite",
    ),
    "inf": (
        arrays(x=with_values(arrays()["x"], row7=np.inf)),
        "in float32, the first in row 7. ",
    ),
    "complex": (arrays(y=np.array([1j] * 40)), "y holds values of type complex128. It needs real "),
    "objects": (
        arrays(y=np.array([{}] * 40)),
        "Python objects are never unpickled. Save it anew ",
    ),
    "half a class": (
        arrays(y=arrays()["y"] + 0.5),
        "y holds 0.5 in row 0. It needs classes, as whole numbers or names",
    ),
    "below 0": (
        arrays(y=with_values(arrays()["y"], row9=-1)),
        "y holds the label -1 in row 9. ",
    ),
    "above": (
        arrays(y=with_values(arrays()["y"], row9=2), num_classes=2),
        "run from 0 to 1.",
    ),
    "misspelt": (
        arrays(goups=np.zeros(20)),
        "has members that are not read: goups. Did you mean groups? Known are x, y, x_val, ",
    ),
    "far above": (
        arrays(y=arrays()["y"] * 1000),
        "no sample has 1, 2, 3, ...; the largest is 1000. Number them anew",
    ),
    "one class": (arrays(y=np.zeros(40)), "The classes of the 32 training samples are [0], and "),
    "one group": (
        arrays(groups=np.zeros(40)),
        "All 40 samples belong to one group, which would have",
    ),
    "test samples only": (arrays(x_test=np.zeros((2, 4))), "x_test is given without y_test. Give "),
    "other test samples": (
        arrays(x_test=np.zeros((2, 3)), y_test=[0, 1]),
        "samples of x have the shape (4,) and samples of x_test (3,). They must have the same "
        "shape.",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_data_that_cannot_be_learned_from_are_refused(refused, case):
    members, message = BROKEN[case]
    np.savez("data.npz", **members)

    assert message in refused("train", "--data", "data.npz", *QUICK)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "is damaged, or another kind of file with the name of an .npz file"),
        (lambda content: b"not an archive", "is damaged, or another kind of file with the name"),
        (lambda content: content[: len(content) // 2], "is damaged, or another kind of file with "),
        (
            lambda content: content[:300] + b"\xff\x00" + content[302:],
            "the member x cannot be read",
        ),
    ],
    ids=["empty", "text", "truncated", "corrupt"],
)
def test_damaged_data_are_refused(refused, damage, message):
    np.savez("data.npz", **arrays())
    Path("data.npz").write_bytes(damage(Path("data.npz").read_bytes()))

    said = refused("train", "--data", "data.npz", *QUICK)

    assert said.startswith("data.npz")
    assert message in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.npz", "none.npz cannot be read: No such file or directory."),
        ("data.csv", "data.csv cannot be read: No such file or directory."),
        ("Mnist", 'There is no data set "Mnist". Did you mean mnist? Known are digits, mnist, '),
        ("", 'There is no data set "". Known are digits, mnist, '),
    ],
)
def test_data_that_are_not_there_are_refused(refused, name, message):
    assert message in refused("train", "--data", name)


def test_a_data_folder_that_is_not_there_is_refused(refused):
    message = "The data folder nowhere, named by data_dir, does not exist. Correct the name or "

    assert message in refused("train", "--data", "mnist", "--data-dir", "nowhere")
    assert message in refused("data", "--data-dir", "nowhere")


def test_damaged_published_files_are_refused(refused):
    write_mnist(Path("mnist"))
    labels = Path("mnist") / published.IDX_FILES[1]
    labels.write_bytes(labels.read_bytes()[:-1])
    write_cifar10(Path("cifar-10-batches-bin"))
    batch = Path("cifar-10-batches-bin") / published.CIFAR_TEST_FILE
    batch.write_bytes(batch.read_bytes() + b"\x00")

    assert f"{labels} is damaged: its header announces 20 values, but only 19 follow." in refused(
        "train", "--data", "mnist", "--data-dir", "."
    )
    assert (
        f"{batch} is damaged: its 6147 bytes are not a whole number of samples of 3073"
        in refused("train", "--data", "cifar10", "--data-dir", ".")
    )


def test_published_labels_out_of_range_are_refused(refused):
    write_mnist(Path("mnist"))
    labels = np.full(20, 10, dtype=np.uint8)
    (Path("mnist") / published.IDX_FILES[1]).write_bytes(idx_bytes(labels))

    message = "mnist: y holds the label 10 in row 0. With 10 classes, labels run from 0 to 9."
    assert message in refused("train", "--data", "mnist", "--data-dir", ".")


def test_images_that_have_no_room_for_labels_are_refused(refused):
    np.savez("data.npz", x=np.zeros((40, 1, 3, 3)), y=np.arange(40) % 10)

    said = refused("train", "pff", "--data", "data.npz", *QUICK)

    assert "10 labels cannot overwrite the first pixels of images that have 9 a channel" in said
    assert "Give vectors, and the label comes before them; or use a recipe that writes none" in said


def test_a_shard_that_is_not_there_is_refused(refused):
    np.savez("shard-0.npz", **arrays())

    message = "shard-1.npz cannot be read: No such file or directory."
    assert message in refused("train", "--data", "shard-{rank}.npz", "--processes", "2")


@pytest.mark.distributed
def test_shards_of_one_class_each_are_refused_where_all_have_the_same(capfd):
    for rank in range(2):
        np.savez(f"shard-{rank}.npz", **arrays(y=np.zeros(40), num_classes=2))
    arguments = ("--data", "shard-{rank}.npz", "--processes", "2", "--batch-size", "10", *QUICK)

    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments, "--epochs", "2", "--out", "run"])

    assert ended.value.code == 2
    message = "onward: The classes of the 56 training samples are [0], and learning takes two "
    assert message in capfd.readouterr().err
    assert sorted(os.listdir()) == ["shard-0.npz", "shard-1.npz"]


def test_a_training_that_leaves_the_finite_numbers_says_so(refused):
    message = (
        "The loss of block 0 is no longer finite (nan) in mini-batch 1 of epoch 0, both counted "
        "from 0. A smaller learning rate usually helps."
    )
    assert message in refused("train", *QUICK, "--set", "optimizer.lr=1e30", "--out", "run")


def test_weights_that_leave_the_finite_numbers_after_the_last_mini_batch_are_noticed(refused):
    one_step = ("--batch-size", "1293", "--set", "training.schedule=constant")

    said = refused("train", *QUICK, *one_step, "--lr", "1e39", "--out", "run")

    assert said == (
        "The module.weight of block 0 is no longer finite at the end of chapter 0. A smaller "
        "learning rate usually helps."
    )


# Run folders


def test_a_run_is_not_replaced_unless_asked_for(refused):
    Path("run").mkdir()
    Path("run/result.json").write_text("{}")

    message = "The folder run holds a run already. Name another with --out, or replace it with --ov"
    assert message in refused("train", *QUICK, "--out", "run")


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_a_folder_of_something_else_is_never_replaced(refused, overwrite):
    Path("config.toml").write_text("the settings of another program")

    message = "The folder . holds something else. Name another."
    assert message in refused("train", *QUICK, "--out", ".", *overwrite)


def test_a_file_is_not_taken_for_a_run_folder(refused):
    Path("file").write_text("")

    message = "file is a file, not a folder. Name another."
    assert message in refused("train", *QUICK, "--out", "file")


@contextmanager
def nobody():
    """Be nobody in particular for a while, as root is denied nothing.

    Nobody may not be able to import: what is needed must have been imported before.
    """
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def locked():
    """A folder that cannot be written to, in one that everybody can read."""
    folder = Path("locked")
    folder.mkdir()
    folder.chmod(0o555)
    Path().chmod(0o755)
    yield folder
    folder.chmod(0o755)


def test_a_run_folder_without_permission_to_write_is_refused(refused, finished, locked):
    np.savez("data.npz", **arrays())
    arguments = ("--data", "data.npz", *QUICK, "--batch-size", "10", "--out")

    with nobody():
        inside = refused("train", *arguments, locked / "run")
        itself = refused("train", *arguments, locked)

    assert "The folder locked/run cannot be written to: Permission denied. Name another." in inside
    assert "The folder locked cannot be written to: Permission denied. Name another." in itself


def test_predictions_without_permission_to_write_are_refused(refused, finished, locked):
    np.savez("new.npz", x=np.zeros((2, 4)))
    shutil.copy(finished / "model.safetensors", "m.safetensors")
    Path("m.safetensors").chmod(0o644)

    with nobody():
        said = refused("predict", "m.safetensors", "new.npz", "--out", locked / "found.npz")

    assert said == "locked/found.npz cannot be written: Permission denied."


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_before_training_is_refused(refused, small_disk):
    (small_disk / "other").write_bytes(bytes(250_000))

    message = f"The folder {small_disk}/run cannot be written to: No space left on device. Name "
    assert message in refused("train", *QUICK, "--out", small_disk / "run")
    assert os.listdir(small_disk) == ["other"]


def test_a_disk_that_is_full_after_training_is_left_as_it_was(refused, small_disk):
    said = refused("train", *QUICK, "--widths", "2000", "--out", small_disk / "run")

    assert said.startswith("What 0T0 made cannot be written to ")
    assert "No space left on device" in said
    assert os.listdir(small_disk) == []


def test_a_disk_that_gets_full_leaves_the_run_that_was_to_be_replaced(refused, small_disk):
    with pytest.raises(SystemExit):
        main(["train", *QUICK, "--out", str(small_disk / "run")])
    before = {path.name: path.read_bytes() for path in (small_disk / "run").iterdir()}

    refused("train", *QUICK, "--widths", "2000", "--out", small_disk / "run", "--overwrite")

    assert {path.name: path.read_bytes() for path in (small_disk / "run").iterdir()} == before


def test_predictions_that_do_not_fit_on_the_disk_are_refused(refused, finished, small_disk):
    np.savez("new.npz", x=np.zeros((30_000, 4), dtype=np.uint8))
    found = small_disk / "found.npz"

    message = f"{found} cannot be written: No space left on device."
    assert message in refused("predict", finished, "new.npz", "--out", found)
    assert os.listdir(small_disk) == []


@contextmanager
def no_file_larger_than(num_bytes):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_model_larger_than_files_may_be_is_not_half_written(refused):
    with no_file_larger_than(200_000):
        said = refused("train", *QUICK, "--widths", "2000", "--out", "run")

    assert said.startswith("What 0T0 made cannot be written to ")
    assert "File too large" in said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_predictions_that_cannot_be_printed_are_refused(finished, monkeypatch, capsys):
    np.savez("new.npz", x=np.zeros((2, 4)))

    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(finished), "new.npz"])

    assert ended.value.code == 2
    message = "onward: The predictions cannot be written: No space left on device.\n"
    assert capsys.readouterr().err == message


# Models


def with_header(source, path, **changes):
    """Copy a model file, with other entries in its header."""
    with safe_open(source, framework="np") as file:
        header = json.loads(file.metadata()["onward"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"onward": json.dumps(header | changes)})


def test_a_model_that_is_not_there_is_refused(refused):
    Path("run").mkdir()
    message = "There is no model at run/model.safetensors. A finished run has a model.safetensors."

    assert message in refused("evaluate", "run")
    assert message in refused("predict", "run", "new.npz")


def test_a_model_of_a_newer_version_is_refused(refused, finished):
    with_header(finished / "model.safetensors", "new.safetensors", format=4, version="9.1")

    message = (
        "The model file new.safetensors has format 4, and this version of onward reads up to 3. "
        "Install onward 9.1 or newer."
    )
    assert message in refused("predict", "new.safetensors", "new.npz")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "The model file m.safetensors is damaged: "),
        (lambda content: b"\x80\x04N.", "The model file m.safetensors is damaged: "),
        (lambda content: content[:-10], "The model file m.safetensors is damaged: "),
        (lambda content: content[:-1] + b"\x7f", "its weights do not have its checksum."),
    ],
    ids=["empty", "pickle", "truncated", "corrupt"],
)
def test_a_damaged_model_is_refused(refused, finished, damage, message):
    content = (finished / "model.safetensors").read_bytes()
    Path("m.safetensors").write_bytes(damage(content))

    assert message in refused("predict", "m.safetensors", "new.npz")


def test_a_model_of_another_program_is_refused(refused):
    save_file({"weight": np.zeros(3)}, "m.safetensors")

    message = "The file m.safetensors was not written by onward: it has no onward header."
    assert message in refused("predict", "m.safetensors", "new.npz")


def test_evaluate_takes_a_folder_only(refused, finished):
    model = finished / "model.safetensors"

    message = f"{model} is a file. Give a run folder, as `onward train` makes it."
    assert message in refused("evaluate", model)


def test_evaluate_refuses_data_that_the_network_does_not_fit(refused, finished):
    np.savez("wide.npz", **arrays(x=np.zeros((40, 5))))
    np.savez("many.npz", **arrays(y=np.arange(40) % 3))

    message = "wide.npz has samples of shape (5,), and the network was trained on samples of "
    assert message in refused("evaluate", finished, "--data", "wide.npz")
    message = "many.npz has 3 classes, and the network was trained to tell 2 apart."
    assert message in refused("evaluate", finished, "--data", "many.npz")


# Predictions


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (
            np.zeros((3, 5)),
            "new.npz has samples of shape (5,), and the network was trained on samples of shape ",
        ),
        (
            np.zeros((3, 2, 2)),
            "new.npz has samples of shape (2, 2), and the network was trained on ",
        ),
        (
            np.zeros((0, 4)),
            "new.npz: x has the shape (0, 4). It needs one sample or more, samples first",
        ),
        (
            np.zeros(4),
            "new.npz: x has the shape (4,). It needs one sample or more, samples first, and ",
        ),
        (
            np.full((3, 4), np.nan),
            "new.npz: x holds 12 values that are NaN or infinite in float32,",
        ),
        (np.array([["a"]]), "new.npz: x holds values of type <U1. It needs real numbers."),
    ],
    ids=["width", "shape", "no samples", "one axis", "nan", "text"],
)
def test_samples_that_the_network_does_not_fit_are_refused(refused, finished, samples, message):
    np.savez("new.npz", x=samples)

    assert message in refused("predict", finished, "new.npz", "--out", "found.npz")


def test_a_file_without_samples_is_refused(refused, finished):
    Path("samples.txt").write_text("1 2 3")
    np.savez("named.npz", samples=np.zeros((3, 4)))

    assert "none.npz cannot be read: No such file" in refused("predict", finished, "none.npz")
    assert "samples.txt cannot be read. Give a file that ends in " in refused(
        "predict", finished, "samples.txt"
    )
    assert "named.npz lacks x; it has samples." in refused("predict", finished, "named.npz")


def test_predictions_are_written_to_npz_files_only(refused, finished):
    message = "--out takes a name that ends in .npz; got found.csv."
    assert message in refused("predict", finished, "new.npz", "--out", "found.csv")


def test_predictions_into_a_folder_that_is_not_there_are_refused(refused, finished):
    np.savez("new.npz", x=np.zeros((2, 4)))

    said = refused("predict", finished, "new.npz", "--out", "nowhere/found.npz")
    assert "nowhere/found.npz cannot be written: No such file or directory." in said
