"""What `onward doctor` finds, and what it says to do."""

import socket

import pytest
import torch
from ranks import results

from onward.cli import doctor
from onward.cli.doctor import addresses, check_machine
from onward.cli.main import main


def findings():
    return {finding.what: finding for finding in check_machine()}


def test_the_loopback_is_among_the_interfaces():
    assert "127.0.0.1" in addresses().values()


def test_a_name_that_others_cannot_reach_asks_for_an_interface(monkeypatch):
    monkeypatch.setattr(doctor, "addresses", lambda: {"lo": "127.0.0.1", "eth7": "10.0.0.5"})
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")

    found = findings()["own name"]

    assert "which no other machine can reach" in found.found
    assert "--iface eth7" in found.advice


def test_a_name_without_an_address_asks_for_an_interface(monkeypatch):
    def unknown(name):
        raise OSError

    monkeypatch.setattr(doctor, "addresses", lambda: {"eth7": "10.0.0.5"})
    monkeypatch.setattr(socket, "gethostbyname", unknown)

    assert "--iface eth7" in findings()["own name"].advice


def test_a_name_that_others_can_reach_is_well(monkeypatch):
    monkeypatch.setattr(doctor, "addresses", lambda: {"eth7": "10.0.0.5"})
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.5")

    assert findings()["own name"].advice == ""


@pytest.mark.parametrize(
    ("lacking", "advice"),
    [
        ((), ""),
        (("matplotlib",), 'For pictures: pip install "onward[report]".'),
        (("onnx",), 'For ONNX files: pip install "onward[export]".'),
        (
            ("matplotlib", "onnxruntime"),
            'For pictures and ONNX files: pip install "onward[report,export]".',
        ),
    ],
    ids=str,
)
def test_packages_of_extras_that_are_not_installed_are_named(monkeypatch, lacking, advice):
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name in lacking else find(name)
    )

    assert findings()["versions"].advice == advice
    assert f"torch {torch.__version__}" in findings()["versions"].found


def test_a_machine_without_a_network_is_told_so(monkeypatch):
    monkeypatch.setattr(doctor, "addresses", lambda: {"lo": "127.0.0.1"})

    assert "No network" in findings()["interfaces"].advice


@pytest.mark.parametrize(("load", "is_well"), [(0.3, True), (64.0, False)])
def test_a_busy_machine_is_told_so(monkeypatch, load, is_well):
    monkeypatch.setattr(doctor.psutil, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 4)

    assert (findings()["processor"].advice == "") is is_well


def test_the_command_says_what_was_found(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])

    assert ended.value.code == 0
    assert "lo 127.0.0.1" in capsys.readouterr().out


@pytest.mark.distributed
def test_the_way_to_every_rank_is_measured():
    first, *others = results()["examined"]

    assert [what for what, _ in first] == ["rank 0 to 1", "rank 0 to 2"]
    for _, found in first:
        assert "ms there and back" in found
        assert "mbit," in found
    assert others == [[], []]
