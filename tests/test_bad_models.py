"""Model files that cannot be used: damaged, of another kind, or made to harm."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import custom_network, header_of, network_of
from safetensors.torch import load_file, save_file

from onward import checkpoint
from onward.checkpoint import FORMAT, load, save, weights_sha256
from onward.errors import FileError


def rewrite(path, *, tensors=None, sign=True, **changes):
    """Change tensors or entries of the header of a model file."""
    header = header_of(path) | changes
    if sign:
        header["header_sha256"] = checkpoint._header_digest(header)
    save_file(tensors or load_file(path), path, metadata={"onward": json.dumps(header)})


def with_changed(blueprint, *where, value):
    changed = json.loads(json.dumps(blueprint))
    inner = changed
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return changed


# Files that cannot be used


def assert_refused(path, match, network=None):
    with pytest.raises(FileError, match=match):
        load(path, network)


def test_a_missing_file_is_said_to_be_missing(path):
    assert_refused(path, "There is no model at .*model.safetensors. A finished run has a")


def test_a_folder_without_a_model_is_said_to_have_none(tmp_path):
    assert_refused(tmp_path, "There is no model at .*model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_damaged(path, saved, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])

    assert_refused(path, "The model file .* is damaged")


def test_a_file_with_something_after_its_end_is_damaged(path, saved):
    path.write_bytes(path.read_bytes() + b"more")

    assert_refused(path, "The model file .* is damaged")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_in_the_weights_is_found(damaged_file, place, bit):
    path, whole = damaged_file
    (length,) = struct.unpack("<Q", whole[:8])
    first = 8 + length
    damaged = bytearray(whole)
    damaged[first + int(place * (len(whole) - first))] ^= 1 << bit
    path.write_bytes(damaged)

    assert_refused(path, "is damaged: its weights do not have its checksum")


@pytest.fixture(scope="module")
def damaged_file(tmp_path_factory):
    """Return a path to write to, and the bytes of a good model."""
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    save(network_of("pff", widths=(4, 4)), path)
    return path, path.read_bytes()


@pytest.mark.parametrize(
    "content",
    [b"hello, world\n", b"\x80\x04K\x01.", b"\x00" * 100, b"PK\x03\x04" + b"\x00" * 60],
    ids=["text", "pickle", "zeros", "zip"],
)
def test_another_kind_of_file_is_damaged(path, content):
    path.write_bytes(content)

    assert_refused(path, "The model file .* is damaged")


def test_arrays_of_another_program_are_told_apart(path):
    save_file({"weight": torch.zeros(2)}, path)

    assert_refused(path, "was not written by onward: it has no onward header")


@pytest.mark.parametrize("header", ["[]", "null", "1", '"x"', "{}", '{"format": "1"}'])
def test_a_header_of_another_kind_is_told_apart(path, header):
    save_file({"weight": torch.zeros(2)}, path, metadata={"onward": header})

    assert_refused(path, "was not written by onward: it has no onward header")


def test_a_header_that_is_no_json_is_damaged(path):
    save_file({"weight": torch.zeros(2)}, path, metadata={"onward": "{format"})

    assert_refused(path, "The model file .* is damaged")


def test_a_newer_format_is_refused_with_the_version_to_install(path, saved):
    rewrite(path, format=FORMAT + 1, version="7.1.0")

    assert_refused(path, "has format 4, and this version .* up to 3. Install onward 7.1.0 or newer")


@pytest.mark.parametrize(
    "changes",
    [{"precision": "fp8"}, {"precision": None}, {"memory_format": "samples"}],
    ids=["unknown", "none", "memory format"],
)
def test_an_unknown_arithmetic_is_damage(path, saved, changes):
    rewrite(path, **changes)

    assert_refused(path, "is damaged: its header is not complete")


def test_another_checksum_is_damage(path, saved):
    rewrite(path, weights_sha256="0" * 64)

    assert_refused(path, "is damaged: its weights do not have its checksum")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("settings", "widths"), []),
        (("settings", "widths"), "many"),
        (("settings", "objective"), "magic"),
        (("settings", "no_such_setting"), 1),
        (("settings",), None),
        (("data", "input_shape"), 4),
        pytest.param(("data", "input_shape"), ["four"]),
        pytest.param(("data", "input_shape"), [-4]),
        pytest.param(("data", "num_classes"), "three"),
        pytest.param(("data", "num_classes"), -3),
        pytest.param(("settings", "dropout"), 2.0),
    ],
)
def test_settings_that_describe_no_network_are_refused(path, saved, where, value):
    rewrite(path, blueprint=with_changed(header_of(path)["blueprint"], *where, value=value))

    assert_refused(path, "describes no known network|does not fit")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("label_strength", 3.0), ("skip_first", False), ("readout", "softmax")],
)
def test_settings_that_were_changed_in_the_file_are_found(path, saved, setting, value):
    blueprint = header_of(path)["blueprint"]
    changed = with_changed(blueprint, "settings", setting, value=value)
    rewrite(path, sign=False, blueprint=changed)

    assert_refused(path, "is damaged: its header does not have its checksum")


def test_other_widths_do_not_fit(path, saved):
    assert_refused(
        path,
        r"does not fit the network: blocks.0.module.bias has shape \(8,\) and type torch.float32,"
        r" expected \(9,\)",
        network_of("hinton", widths=(9, 7, 6)),
    )


def test_another_type_does_not_fit(path, saved):
    tensors = load_file(path)
    tensors["blocks.1.module.weight"] = tensors["blocks.1.module.weight"].double()
    rewrite(path, tensors=tensors)

    assert_refused(path, r"blocks.1.module.weight has shape \(7, 8\) and type torch.float64")


@pytest.mark.parametrize("change", ["one less", "one more"])
def test_other_names_do_not_fit(path, saved, change):
    tensors = load_file(path)
    if change == "one less":
        del tensors["blocks.3.module.weight"]
    else:
        tensors["blocks.4.module.weight"] = torch.zeros(2)
    rewrite(path, tensors=tensors)

    assert_refused(path, r"1 names are on one side only, blocks.[34].module.weight first")


def test_a_network_of_another_recipe_does_not_fit(path, saved):
    assert_refused(path, "does not fit the network", network_of("one-pass"))


def test_a_custom_network_is_loaded_into_a_network_only(path):
    save(custom_network(), path)

    assert_refused(path, "no recipe has built. Build it as before and pass it")


def test_a_custom_network_does_not_fit_one_of_other_widths(path):
    save(custom_network(units=4), path)

    assert_refused(path, "does not fit the network", custom_network(units=5))


def test_a_damaged_file_leaves_the_network_that_was_passed_as_it_was(path, saved):
    tensors = load_file(path)
    tensors["blocks.0.module.bias"] += 1
    rewrite(path, tensors=tensors)
    network = network_of("hinton", seed=8)
    before = weights_sha256(network)

    assert_refused(path, "is damaged", network)

    assert weights_sha256(network) == before


class Explosive:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "boom"))


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_nothing_in_a_file_is_unpickled(path, tmp_path, write):
    with path.open("wb") as file:
        write(Explosive(tmp_path / "boom"), file)

    assert_refused(path, "is damaged")

    assert not (tmp_path / "boom").exists()
