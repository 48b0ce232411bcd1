"""Data sets by name: where they are looked for, and what is downloaded."""

import hashlib
import os
import re
import tarfile
from pathlib import Path

import pytest
from data_files import assert_holds, published, write_cifar10, write_mnist

from onward.data import (
    available,
    download,
    load,
)
from onward.errors import DataError

REAL_DATA = os.environ.get("ONWARD_DATA")

pytestmark = pytest.mark.usefixtures("empty_cache")

# Names and folders


def test_digits_come_with_360_test_samples_by_class_and_values_from_0_to_1():
    digits = load("digits")

    assert digits.x.shape == (1437, 1, 8, 8)
    assert digits.x_test.shape == (360, 1, 8, 8)
    assert (digits.x.min(), digits.x.max()) == (0, 1)
    assert set(digits.y_test.bincount().tolist()) <= {35, 36, 37}
    assert (digits.num_classes, digits.is_image) == (10, True)


def test_digits_are_split_by_the_split_seed():
    assert load("digits").x_test.equal(load("digits", split_seed=0).x_test)
    assert not load("digits").x_test.equal(load("digits", split_seed=1).x_test)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files_are_found_as_plain_folders_and_as_torchvision_lays_them_out(
    tmp_path, name, layout
):
    arrays = write_mnist(tmp_path / layout, zipped=True)

    dataset = load(name, data_dir=str(tmp_path))

    assert dataset.name == name
    assert_holds(dataset, arrays)


def test_folders_are_searched_in_order_data_dir_then_environment_then_cache(
    tmp_path, monkeypatch, empty_cache
):
    named, environment = tmp_path / "named", tmp_path / "environment"
    named.mkdir()
    monkeypatch.setenv("ONWARD_DATA", str(environment))
    found = []

    for folder, samples in ((empty_cache, 12), (environment, 14), (named, 16)):
        environment.mkdir(exist_ok=True)
        write_mnist(folder / "mnist", samples=samples)
        found.append(load("mnist", data_dir=named).num_samples)

    assert found == [12, 14, 16]


def test_a_folder_that_lacks_a_file_is_passed_over(tmp_path, empty_cache):
    write_mnist(tmp_path / "mnist", samples=12)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    write_mnist(empty_cache / "mnist", samples=14)

    assert load("mnist", data_dir=tmp_path).num_samples == 14


def test_a_data_folder_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"typo, named by data_dir, does not exist"):
        load("mnist", data_dir=tmp_path / "typo")

    monkeypatch.setenv("ONWARD_DATA", str(tmp_path / "typo"))
    with pytest.raises(DataError, match=r"typo, named by ONWARD_DATA, does not exist"):
        available()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("minst", " Did you mean mnist?"), ("MNIST", " Did you mean mnist?"), ("iris", " Known are")],
)
def test_an_unknown_name_is_refused_and_the_nearest_suggested(name, hint):
    with pytest.raises(DataError, match=re.escape(f'There is no data set "{name}".{hint}')):
        load(name)


def test_the_data_sets_known_by_name_are_listed_with_where_they_are(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw")

    listed = {row.name: row for row in available(tmp_path)}

    assert {name: row.where for name, row in listed.items()} == {
        "digits": "comes with scikit-learn",
        "mnist": str(tmp_path / "MNIST" / "raw"),
        "fashion-mnist": "will be downloaded (31 MB)",
        "cifar10": "will be downloaded (170 MB)",
        "mitbih": "to be made: DIR/mitbih/mitbih_beats.npz",
        "mitbih-intervals": "to be made: DIR/mitbih/mitbih_beats.npz",
        "planetoid-cora": "to be made: DIR/graphs/planetoid-cora.npz",
        "planetoid-citeseer": "to be made: DIR/graphs/planetoid-citeseer.npz",
        "citeseer-full": "to be made: DIR/graphs/citeseer-full.npz",
        "cora-ml": "to be made: DIR/graphs/cora-ml.npz",
        "pubmed-full": "to be made: DIR/graphs/pubmed-full.npz",
        "amazon-photo": "to be made: DIR/graphs/amazon-photo.npz",
    }
    assert listed["cifar10"].shape == (3, 32, 32)
    assert (listed["cifar10"].num_samples, listed["cifar10"].num_test_samples) == (50_000, 10_000)


# Downloads


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """Return a function that publishes a folder of files under the name of a data set."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "published").mkdir()
    with published(tmp_path / "published") as url:

        def publish(name):
            files = sorted((tmp_path / "published").iterdir())
            md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in files}
            layouts = download.REMOTES[name].layouts
            monkeypatch.setitem(
                download.REMOTES, name, download.Remote(url, md5, num_bytes=0, layouts=layouts)
            )
            return tmp_path / "published"

        yield publish


def test_what_is_not_found_is_downloaded_into_the_cache_once(tmp_path, publish, empty_cache):
    arrays = write_mnist(tmp_path / "published", zipped=True)
    folder = publish("mnist")

    assert_holds(load("mnist"), arrays)

    for file in folder.iterdir():
        file.unlink()
    assert_holds(load("mnist"), arrays)
    assert available()[1].where == str(empty_cache / "mnist")


def test_a_download_that_was_interrupted_fetches_only_what_is_missing(
    tmp_path, publish, empty_cache
):
    arrays = write_mnist(tmp_path / "published", zipped=True)
    folder = publish("mnist")
    first = min(folder.iterdir())
    (empty_cache / "mnist").mkdir(parents=True)
    first.rename(empty_cache / "mnist" / first.name)

    assert_holds(load("mnist"), arrays)


def test_the_archive_of_cifar10_is_unpacked_into_the_cache(tmp_path, publish, empty_cache):
    arrays = write_cifar10(tmp_path / "cifar-10-batches-bin")
    with tarfile.open(tmp_path / "published" / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    publish("cifar10")

    assert_holds(load("cifar10"), arrays)

    unpacked = empty_cache / "cifar10" / "cifar-10-batches-bin"
    assert {row.name: row.where for row in available()}["cifar10"] == str(unpacked)


def test_a_failed_download_says_from_where_and_how_to_do_without(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    remote = download.Remote("http://127.0.0.1:9/", {"one.gz": "0"}, 0, ("mnist", "MNIST/raw"))
    monkeypatch.setitem(download.REMOTES, "mnist", remote)

    message = (
        "http://127.0.0.1:9/one.gz could not be fetched (ConnectionError). If you have the files "
        "of mnist already, or can copy them to this machine, put them into DIR/mnist or "
        "DIR/MNIST/raw and name that folder by --data-dir DIR or the environment variable "
        "ONWARD_DATA=DIR."
    )
    with pytest.raises(DataError, match=re.escape(message)):
        load("mnist")


def test_a_file_that_is_no_longer_published_is_a_failed_download(tmp_path, publish):
    write_mnist(tmp_path / "published", zipped=True)
    for file in publish("mnist").iterdir():
        file.unlink()

    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz could not be fetched \(HTTPEr"):
        load("mnist")


def test_a_download_that_is_not_the_published_file_is_refused(tmp_path, publish, empty_cache):
    write_mnist(tmp_path / "published", zipped=True)
    for file in publish("mnist").iterdir():
        file.write_bytes(b"something else")

    with pytest.raises(DataError, match="was fetched, but its MD5 is not the published"):
        load("mnist")
    assert list((empty_cache / "mnist").iterdir()) == []


# Real data


def real(name):
    """Load a published data set from ONWARD_DATA, or skip the test that asks for it."""
    where = {row.name: row.where for row in available(REAL_DATA)}[name] if REAL_DATA else ""
    if not Path(where).is_dir() or not where:
        pytest.skip(f"Set ONWARD_DATA to a folder that holds {name} to run this test.")
    return load(name, data_dir=REAL_DATA)


def test_mnist_as_published_has_its_known_numbers():
    mnist = real("mnist")

    assert mnist.x.shape == (60_000, 1, 28, 28)
    assert mnist.x_test.shape == (10_000, 1, 28, 28)
    assert mnist.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.y_test.bincount().tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    shares = mnist.x.double() / 255
    assert shares.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert shares.std().item() == pytest.approx(0.3081, abs=5e-5)


def test_cifar10_as_published_has_its_known_numbers():
    cifar10 = real("cifar10")

    assert cifar10.x.shape == (50_000, 3, 32, 32)
    assert cifar10.y.bincount().tolist() == [5_000] * 10
    assert cifar10.y_test.bincount().tolist() == [1_000] * 10
    channels = (cifar10.x.double().mean(dim=(0, 2, 3)) / 255).tolist()
    assert channels == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)


def test_data_that_were_in_memory_are_given_in_python():
    with pytest.raises(DataError, match=r"in memory .* or call onward\.calibrate\(RUN, x, y\)"):
        load("samples")
