"""Hosts on one machine: network namespaces that a switch joins, with links of a given rate."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

import common

PORT = 29500


def need() -> None:
    """End well, saying why, where namespaces cannot be made."""
    name = f"onward-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        common.skip(f"Hosts need network namespaces, which root makes: {tried.stderr.strip()}.")
    ip("netns", "del", name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Hosts:
    """Some hosts, each with one interface to a switch.

    Args:
        number: How many.
        rate: Rate of each interface, to and from the switch, as tc writes it; None for no limit.
    """

    def __init__(self, number: int, rate: str | None = None) -> None:
        self.names = [f"onward-{os.getpid()}-{host}" for host in range(number)]
        self.switch = f"onward-{os.getpid()}-switch"
        self.rate = rate
        # When, and the bytes that all hosts had sent by then.
        self.samples: list[tuple[float, int]] = []
        self.ended = threading.Event()
        self.stack = ExitStack()

    def __enter__(self) -> "Hosts":
        with self.stack as stack:
            self._add(self.switch)
            ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
            ip("-n", self.switch, "link", "set", "switch", "up")
            for host, name in enumerate(self.names):
                self._add(name)
                self._join(host, name)
            # Its list of interfaces is that of the namespace it is in.
            command = ["ip", "netns", "exec", self.switch, "sleep", "infinity"]
            self.watched = stack.enter_context(subprocess.Popen(command))
            stack.callback(self.watched.kill)
            sampler = threading.Thread(target=self._sample)
            sampler.start()
            stack.callback(sampler.join)
            stack.callback(self.ended.set)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _add(self, name: str) -> None:
        ip("netns", "add", name)
        self.stack.callback(ip, "netns", "del", name)

    def _join(self, host: int, name: str) -> None:
        """Give a host an interface, the other end of which is a port of the switch."""
        ip("-n", name, "link", "set", "lo", "up")
        end = ("peer", "name", f"port{host}", "netns", self.switch)
        ip("-n", name, "link", "add", "eth0", "type", "veth", *end)
        ip("-n", name, "address", "add", f"{address(host)}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", self.switch, "link", "set", f"port{host}", "master", "switch", "up")
        for namespace, device in ((name, "eth0"), (self.switch, f"port{host}")):
            if self.rate:
                bucket = ("tbf", "rate", self.rate, "burst", "256kb", "latency", "50ms")
                qdisc = ("qdisc", "add", "dev", device, "root", *bucket)
                subprocess.run(["tc", "-n", namespace, *qdisc], check=True)

    def run(self, command: Sequence[str]) -> int:
        """Run a Python script as one rank a host, and end all where one fails.

        Returns:
            0, or the status of a rank that failed.
        """
        ranks = []
        for rank, name in enumerate(self.names):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "WORLD_SIZE": str(len(self.names)),
                "LOCAL_WORLD_SIZE": "1",
                "MASTER_ADDR": address(0),
                "MASTER_PORT": str(PORT),
                "GLOO_SOCKET_IFNAME": "eth0",
            }
            # `ip netns exec` would hide the control groups under another /sys.
            words = ["nsenter", f"--net=/var/run/netns/{name}", sys.executable, *command]
            ranks.append(subprocess.Popen(words, env=environment))
        statuses: list[int | None] = [None]
        while None in statuses and not any(statuses):
            time.sleep(0.05)
            statuses = [rank.poll() for rank in ranks]
        for rank in ranks:
            rank.kill()
            rank.wait()
        return next((status for status in statuses if status), 0)

    def plug(self, host: int, *, is_in: bool) -> None:
        """Put the cable of a host in, or pull it out."""
        state = "up" if is_in else "down"
        ip("-n", self.switch, "link", "set", f"port{host}", state)

    def bytes_sent(self, start: float, end: float) -> float:
        """Return the bytes that all hosts together sent between two times of `time.time`."""
        return self._by(end) - self._by(start)

    def _by(self, at: float) -> float:
        before, after = self.samples[0], self.samples[-1]
        for sample in self.samples:
            if sample[0] <= at:
                before = sample
            else:
                after = sample
                break
        if after[0] <= before[0]:
            return before[1]
        share = min(max((at - before[0]) / (after[0] - before[0]), 0.0), 1.0)
        return before[1] + share * (after[1] - before[1])

    def _sample(self) -> None:
        while not self.ended.wait(0.05):
            with open(f"/proc/{self.watched.pid}/net/dev") as file:
                lines = [line.split() for line in file if line.lstrip().startswith("port")]
            # What a port of the switch receives is what its host sends.
            self.samples.append((time.time(), sum(int(words[1]) for words in lines)))


def address(host: int) -> str:
    return f"10.77.0.{host + 1}"
