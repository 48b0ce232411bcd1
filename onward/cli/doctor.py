"""What a machine, and the way between several, is fit for, and what to set where it is not."""

import argparse
import importlib.util
import os
import platform
import queue
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from rich.console import Console
from torch import Tensor

from onward import world
from onward.config import RunConfig
from onward.devices import find_device, resolve_precision, why_no_gpu
from onward.errors import PeerLostError
from onward.launcher import launch
from onward.runs.joining import join_ranks
from onward.runs.progress import Bars
from onward.transport.messages import Transport
from onward.version import VERSION

STATE_NUMBERS = 4_000_000
"""Numbers of a message that stands for a block: 16 MB, the weights of 2000 x 2000."""

ROUND_TRIPS = 20
"""Small messages by which the latency is measured."""

MOST_CLOCK_SECONDS = 1.0
"""Difference of two clocks at which the lanes of a timeline are no longer to be trusted."""

LONGEST_SECONDS = 60.0
"""How long a message of 16 MB may take."""

EXTRAS = {
    "report": ("matplotlib",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "tables": ("pandas", "pyarrow"),
    "images": ("PIL",),
    "tensorboard": ("tensorboard",),
}
"""Packages of each extra."""

EXTRA_USES = {
    "report": "pictures",
    "export": "ONNX files",
    "tables": "tables",
    "images": "folders of images",
    "tensorboard": "TensorBoard",
    "graph": "graph convolutions",
}
"""What each extra is for."""


@dataclass(frozen=True)
class Finding:
    """Something that was looked at."""

    what: str
    """Which."""

    found: str
    """What was found."""

    advice: str = ""
    """What to do about it; empty where all is well."""


def doctor_command(options: argparse.Namespace) -> None:
    """Say what is found, and what to do where something is not as it should be."""
    given = {name: getattr(options, name) for name in ("placement.processes", "placement.iface")}
    config = RunConfig().with_settings({n: v for n, v in given.items() if v})
    placement = config.placement
    if placement.processes > 1 and not world.is_distributed():
        command = ["-m", "onward", "doctor"]
        if placement.iface is not None:
            command += ["--iface", placement.iface]
        status = launch(placement.processes, command)
        if status:
            sys.exit(status)
        return
    # At once, since ranks that cannot meet wait for each other.
    is_first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    _print_findings(check_machine() if is_first_here else [])
    if world.is_distributed():
        with join_ranks(config, Bars(Console(stderr=True, markup=False))) as transport:
            _print_findings(check_ranks(transport))


def _print_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        print(f"{finding.what:14} {finding.found}")
        if finding.advice:
            print(f"{'':14} -> {finding.advice}")
    sys.stdout.flush()


def addresses() -> dict[str, str]:
    """Return the first IPv4 address of each network interface that has one."""
    found: dict[str, str] = {}
    for name, known in psutil.net_if_addrs().items():
        for entry in known:
            if entry.family == socket.AF_INET:
                found.setdefault(name, entry.address)
    return found


def check_machine() -> list[Finding]:
    """Look at this machine alone."""
    cores, load, here = os.cpu_count() or 1, psutil.getloadavg()[0], addresses()
    others = [name for name, address in here.items() if not address.startswith("127.")]
    interfaces = ", ".join(f"{name} {address}" for name, address in here.items())
    return [
        check_packages(),
        Finding(
            "processor",
            f"{cores} cores, {resolve_precision('auto', torch.device('cpu'))} products",
            "" if load < cores else f"Its load is {load:.1f}: other work slows a training down.",
        ),
        _check_gpus(),
        Finding(
            "interfaces",
            interfaces or "none",
            "" if others else "No network: other machines cannot be reached.",
        ),
        _check_name(others),
    ]


def _check_gpus() -> Finding:
    """Look for GPUs that torch can use."""
    reason = why_no_gpu()
    if reason is not None:
        return Finding("GPUs", f"none: {reason}")
    device = find_device("cuda")
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    text = f"{', '.join(names)}, {resolve_precision('auto', device)} products"
    return Finding("GPUs", text)


def check_packages() -> Finding:
    """Look for the packages of the extras."""
    lacking = [
        extra
        for extra, packages in EXTRAS.items()
        if not all(importlib.util.find_spec(package) for package in packages)
    ]
    return Finding(
        "versions",
        f"onward {VERSION}, torch {torch.__version__}, Python {platform.python_version()}",
        f"For {' and '.join(EXTRA_USES[extra] for extra in lacking)}: pip install "
        f'"onward[{",".join(lacking)}]".'
        if lacking
        else "",
    )


def _check_name(others: Sequence[str]) -> Finding:
    """Look up the name of this machine, as gloo does to find its own address."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return Finding(
            "own name",
            f"{name} has no address",
            f"Between machines, name the interface: --iface {others[0] if others else 'NAME'}.",
        )
    if address.startswith("127.") and others:
        return Finding(
            "own name",
            f"{name} is {address}, which no other machine can reach",
            f"Between machines, name the interface: --iface {others[0]}.",
        )
    return Finding("own name", f"{name} is {address}")


def check_ranks(transport: Transport) -> list[Finding]:
    """Look at the way from rank 0 to every other; all ranks call this.

    Returns:
        What was found, on rank 0; nothing on others.
    """
    # Ranks leave an exchange within 20 ms of each other; a clock that is seconds off shows.
    transport.all_gather("doctor", None)
    clocks = transport.all_gather("clocks", time.time())
    rank, num_ranks = transport.rank, transport.num_ranks
    word, state = torch.zeros(1), torch.zeros(STATE_NUMBERS)
    letters: dict[int, queue.SimpleQueue[list[Tensor]]] = {}
    layouts = [[word]] * ROUND_TRIPS + [[state]] * 3
    for peer in range(1, num_ranks) if rank == 0 else [0]:
        letters[peer] = queue.SimpleQueue()
        transport.expect(peer, layouts, letters[peer].put)
    if rank:
        for _ in layouts:
            transport.send(0, _receive(letters[0], transport, 0))
        return []
    findings = []
    for peer in range(1, num_ranks):
        seconds = []
        for layout in layouts:
            start = time.perf_counter()
            transport.send(peer, layout)
            _receive(letters[peer], transport, peer)
            seconds.append(time.perf_counter() - start)
        trip = statistics.median(seconds[:ROUND_TRIPS])
        rate = 2 * state.nbytes / min(seconds[ROUND_TRIPS:])
        findings.append(
            Finding(
                f"rank 0 to {peer}",
                f"{trip * 1e3:.2f} ms there and back, {rate * 8e-6:,.0f} Mbit/s; "
                f"--link {rate * 8e-6:.0f}mbit,{trip * 500:.2f}ms for `onward plan`",
            )
        )
        apart = abs(clocks[peer] - clocks[0])
        if apart > MOST_CLOCK_SECONDS:
            findings.append(
                Finding(
                    f"clock of rank {peer}",
                    f"{apart:.1f} s from that of rank 0",
                    "Timelines of the two will not match. Keep clocks with NTP.",
                )
            )
    return findings


def _receive(
    letters: "queue.SimpleQueue[list[Tensor]]", transport: Transport, peer: int
) -> list[Tensor]:
    """Return the next message of a rank, which must not take for ever."""
    try:
        return letters.get(timeout=LONGEST_SECONDS)
    except queue.Empty:
        raise PeerLostError(
            f"Rank {transport.rank} heard nothing from rank {peer} for {LONGEST_SECONDS:.0f} s."
        ) from transport.failure
