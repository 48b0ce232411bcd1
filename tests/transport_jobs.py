"""Jobs about the transport: what arrives, in which order, and who waits."""

import gc
import itertools
import os
import random
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from jobs import job

from onward.cli.doctor import check_ranks
from onward.transport.distributed import IN_FLIGHT, DistributedTransport

MEGABYTE = 2**20


@contextmanager
def opened():
    """Open a transport, and close it unless the job fails."""
    transport = DistributedTransport()
    transport.connect()
    yield transport
    transport.finish()
    transport.close()


@job(3)
def examined(folder):
    with opened() as transport:
        findings = check_ranks(transport)
    return [[finding.what, finding.found] for finding in findings]


@job(2)
def dropped_by_the_sender(folder):
    received = []
    with opened() as transport:
        if transport.rank == 0:
            for number in range(IN_FLIGHT):
                transport.send(1, [torch.full((1000 * number + 1,), float(number))])
            gc.collect()
            transport.all_gather("sent", None)
        else:
            transport.all_gather("sent", None)
            time.sleep(0.3)
            layouts = ([torch.empty(1000 * number + 1)] for number in range(IN_FLIGHT))
            transport.expect(0, layouts, received.append)
    return [[len(tensor), *tensor.unique().tolist()] for (tensor,) in received]


@job(2)
def while_the_receiver_computes(folder):
    arrived, matrix, products, before = [], torch.ones(200, 200), 0, 0
    with opened() as transport:
        if transport.rank == 1:
            layouts = ([torch.empty(MEGABYTE // 4)] for _ in range(8))
            transport.expect(0, layouts, arrived.append)
            transport.all_gather("ready", None)
            until = time.monotonic() + 20
            while len(arrived) < 8 and time.monotonic() < until:
                matrix @ matrix
                products += 1
            before = len(arrived)
        else:
            transport.all_gather("ready", None)
            time.sleep(0.3)
            for _ in range(8):
                transport.send(1, [torch.zeros(MEGABYTE // 4)])
    return {"arrived_before_waiting": before, "products": products}


@job(2)
def after_a_long_wait(folder):
    received, start = [], time.monotonic()
    with opened() as transport:
        if transport.rank == 1:
            layouts = ([torch.empty(5)] for _ in range(2))
            transport.expect(
                0, layouts, lambda m: received.append([m[0][0].item(), time.monotonic() - start])
            )
        else:
            time.sleep(2.5)
            for number in range(2):
                transport.send(1, [torch.full((5,), float(number))])
    return received


def sizes(source, dest):
    """Return the sizes of 60 messages: most are small, some are of megabytes."""
    draw = random.Random(f"{source} to {dest}")
    return [draw.randint(1, 5000 if draw.random() < 0.95 else 3 * MEGABYTE) for _ in range(60)]


@job(4)
def in_order(folder):
    received = {}
    with opened() as transport:
        others = [rank for rank in range(4) if rank != transport.rank]
        for source in others:
            layouts = (
                [torch.empty((), dtype=torch.int64), torch.empty(size, dtype=torch.uint8)]
                for size in sizes(source, transport.rank)
            )
            transport.expect(source, layouts, received.setdefault(source, []).append)
        for number in range(60):
            for dest in others:
                size = sizes(transport.rank, dest)[number]
                content = torch.full((size,), number + 4 * transport.rank, dtype=torch.uint8)
                transport.send(dest, [torch.tensor(number), content])
    return {
        source: [
            [number.item(), len(content), *content.unique().tolist()]
            for number, content in messages
        ]
        for source, messages in received.items()
    }


@job(2)
def large(folder):
    received = []
    with opened() as transport:
        sent = [torch.arange(size // 8) for size in (9 * MEGABYTE, 40 * MEGABYTE)]
        if transport.rank == 1:
            transport.expect(0, [[torch.empty_like(t)] for t in sent], received.append)
        else:
            for tensor in sent:
                transport.send(1, [tensor])
    return [tensor.equal(expected) for (tensor,), expected in zip(received, sent, strict=False)]


@job(2)
def of_all_types(folder):
    received = []
    sent = [
        torch.arange(5.0),
        torch.arange(5.0, dtype=torch.float64),
        torch.tensor([1.5, float("nan"), float("inf")], dtype=torch.bfloat16),
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.arange(6.0).view(2, 3).T,
        torch.ones(1, 2, 3, requires_grad=True),
    ]
    with opened() as transport:
        if transport.rank == 1:
            layout = [torch.empty(t.shape, dtype=t.dtype) for t in sent]
            transport.expect(0, [layout], received.extend)
        else:
            transport.send(1, sent)
        num_bytes = transport.bytes_sent
    same = [torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(received, sent)]  # noqa: B905
    return {"same": same, "bytes_sent": num_bytes}


@job(3)
def more_than_may_be_on_their_way(folder):
    received = []
    with opened() as transport:
        number = 2 * IN_FLIGHT
        if transport.rank == 0:
            for each in range(IN_FLIGHT):
                transport.send(1, [])
                transport.send(1, [torch.full((3,), float(each))])
            transport.send(2, [torch.zeros(3)])
            other = time.monotonic()
            for each in range(IN_FLIGHT, number):
                transport.send(1, [torch.full((3,), float(each))])
            return {"at": time.monotonic(), "other": other}
        if transport.rank == 1:
            time.sleep(1)
            at = time.monotonic()
            empty = ([[], [torch.empty(3)]] for _ in range(IN_FLIGHT))
            rest = ([torch.empty(3)] for _ in range(IN_FLIGHT))
            transport.expect(0, [*itertools.chain(*empty), *rest], received.append)
        else:
            at = time.monotonic()
            transport.expect(0, [[torch.empty(3)]], received.append)
    return {"at": at, "received": [tensor[0].item() for tensors in received for tensor in tensors]}


@job(4)
def notes(folder):
    with opened() as transport:
        numbers = transport.all_gather("numbers", transport.rank)
        words = transport.all_gather(
            "words", {"who": f"rank {transport.rank} ✓", "what": [None, 0.5]}
        )
    return [numbers, words]


@job(2)
def closing(folder):
    received = []
    with opened() as transport:
        if transport.rank == 1:
            time.sleep(0.7)
            layouts = [[torch.empty(10 * MEGABYTE)]]
            transport.expect(0, layouts, lambda _: received.append(time.monotonic()))
        else:
            transport.send(1, [torch.ones(10 * MEGABYTE)])
    return {"closed": time.monotonic(), "received": received}


@job(2)
def listening(folder):
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    with opened():
        return {
            "addresses": sorted(set(listening_addresses())),
            "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
        }


def listening_addresses():
    """Return the addresses at which this process listens, from Linux's list of sockets."""
    own = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            own.add(os.readlink(link))
        except OSError:
            continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in own:
                raw = bytes.fromhex(local.partition(":")[0])
                words = [raw[i : i + 4][::-1] for i in range(0, len(raw), 4)]
                family = socket.AF_INET6 if table == "tcp6" else socket.AF_INET
                yield socket.inet_ntop(family, b"".join(words))
