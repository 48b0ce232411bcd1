"""How long inference takes: every policy is given the same batches, in turn."""

import pytest
import torch

import onward as ow
from onward.exits import latency
from onward.exits.latency import TURN, Latency, measure
from onward.exits.policies import full_depth

POLICIES = {"whole": full_depth(2), "early": ow.ExitPolicy("margin", (0.0,))}
NAMES = {policy: name for name, policy in POLICIES.items()}


@pytest.fixture
def answered(monkeypatch):
    """What is asked for: the policy's name, and the first input of each sample."""
    calls = []

    def answer(network, batch, policy, batch_size):
        assert batch_size == len(batch)
        calls.append((NAMES[policy], batch.tensor[:, 0].int().tolist()))

    monkeypatch.setattr(latency, "answer", answer)
    return calls


def network():
    return ow.mlp((4,), num_classes=3, widths=(8, 8))


def test_policies_take_turns_at_the_same_batches(answered):
    x = torch.arange(10.0)[:, None].expand(10, 4)

    measure(network(), x, POLICIES, batch_size=2, batches=TURN + 1)

    warm_up, timed = answered[:2], answered[2:]
    each = {name: [samples for who, samples in timed if who == name] for name in POLICIES}
    first = each["whole"][0]
    assert warm_up == [("whole", first), ("early", first)]
    assert each["whole"] == each["early"]
    every = [row for samples in each["whole"] for row in samples]
    assert sorted(every) == list(range(10))
    # In no order of the file, which may be that of the classes.
    assert every != list(range(10))
    turns = ["whole"] * TURN + ["early"] * TURN + ["whole", "early"]
    assert [name for name, _ in timed] == turns


def test_few_samples_are_asked_again(answered):
    x = torch.arange(3.0)[:, None].expand(3, 4)

    found = measure(network(), x, POLICIES, batch_size=4, batches=2)

    every = [row for _, samples in answered[2:4] for row in samples]
    assert sorted(every[:3]) == [0, 1, 2]
    assert every == (every[:3] * 3)[:8]
    assert len(found["whole"].seconds) == 2


def test_figures_of_times_are_those_of_all_batches():
    times = Latency(tuple(0.001 * n for n in range(1, 102)), batch_size=10)

    assert times.median == pytest.approx(0.051)
    assert times.p99 == pytest.approx(0.1)
    assert times.samples_a_second == pytest.approx(1010 / (0.001 * 101 * 51))
