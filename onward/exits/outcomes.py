"""What becomes of samples under an exit policy, beside what it must be compared with."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from onward import seeds
from onward.batch import Batch, in_chunks
from onward.exits.macs import StageCost, stage_costs
from onward.exits.policies import ExitPolicy, full_depth
from onward.network.networks import Forward, Network

RISKS = ("lost", "net")
"""What is counted against a policy, by name: samples that the whole network gets right and the
policy wrong; or those, less the samples for which it is the other way round, which makes it the
change of the error."""


@dataclass(frozen=True)
class HeldOut:
    """What a network says at each exit of samples that it was not trained on, and what is true."""

    history: Float[Tensor, "exits samples classes"]
    """Scores at each exit, no label dropped."""

    labels: Int[Tensor, " samples"]
    """True classes."""

    costs: tuple[StageCost, ...]
    """What each stage costs."""

    is_sweep: bool
    """Whether each label has a pass of its own."""

    was_trained_on: bool = False
    """Whether the network was trained on them after all."""

    def part(self, samples: Tensor) -> "HeldOut":
        """Return some of the samples."""
        return replace(self, history=self.history[:, samples], labels=self.labels[samples])

    @property
    def full(self) -> Int[Tensor, " samples"]:
        """What the whole network answers."""
        return self.history[-1].argmax(dim=1)

    def losses(
        self, answers: Int[Tensor, "*exits samples"], risk: str
    ) -> Int8[Tensor, "*exits samples"]:
        """Return 1 where answers lose what the whole network gets right, and else 0.

        Args:
            answers: Classes of these samples.
            risk: One of `RISKS`. With `net`, -1 where answers gain what it gets wrong.
        """
        wrong, full_wrong = answers != self.labels, self.full != self.labels
        losses = wrong.to(torch.int8) - full_wrong.to(torch.int8)
        return losses if risk == "net" else losses.clamp_min(0)


@dataclass(frozen=True)
class Outcome:
    """What becomes of samples under a policy."""

    exits: Int[Tensor, " samples"]
    """Where each leaves."""

    answers: Int[Tensor, " samples"]
    """What it is taken for."""

    macs: Float[Tensor, " samples"]
    """What it costs."""

    is_wrong: Bool[Tensor, " samples"]
    """Whether the answer is not the true class."""

    is_newly_wrong: Bool[Tensor, " samples"]
    """Whether it is not, and that of the whole network is."""


def look_at(network: Network, batch: Batch) -> HeldOut:
    """Pass samples through the whole network and return what it says at each exit.

    Args:
        network: A network with a readout.
        batch: Samples with their classes.
    """
    chunks = [
        torch.stack([scores.float() for scores in Forward(network, part)]).cpu()
        for part in in_chunks(batch)
    ]
    costs = tuple(stage_costs(network, batch))
    return HeldOut(torch.cat(chunks, dim=1), batch.label.cpu(), costs, network.is_sweep)


def follow(policy: ExitPolicy, seen: HeldOut) -> Outcome:
    """Return what becomes of samples under a policy, from what was seen at full depth.

    Raises:
        SettingError: The policy is for other networks.
    """
    policy.check(len(seen.costs), is_sweep=seen.is_sweep)
    history, macs = dropped(policy, seen)
    num_exits, num_samples, _ = history.shape
    exits = torch.full((num_samples,), num_exits - 1)
    for number in reversed(range(num_exits - 1)):
        exits[policy.leaves(history[: number + 1])] = number
    samples = torch.arange(num_samples)
    answers = history.argmax(dim=2)[exits, samples]
    losses = seen.losses(answers, "lost")
    is_wrong = answers != seen.labels
    return Outcome(exits, answers, macs[exits, samples], is_wrong, losses > 0)


def dropped(policy: ExitPolicy, seen: HeldOut) -> tuple[Tensor, Tensor]:
    """Return the scores with those of dropped labels at -inf, and the MACs up to each exit."""
    history = seen.history.clone()
    stays = torch.ones_like(history[0], dtype=torch.bool)
    macs: list[Tensor] = []
    for number, cost in enumerate(seen.costs):
        history[number][~stays] = -math.inf
        passes = stays.sum(dim=1).double() if seen.is_sweep else torch.ones(len(stays)).double()
        macs.append(cost.row + cost.each * passes)
        if policy.drops and number < len(seen.costs) - 1:
            stays = policy.stays(history[: number + 1])
    return history, torch.stack(macs).cumsum(dim=0)


def fixed_depths(seen: HeldOut) -> list[ExitPolicy]:
    """Return the policies under which all samples leave at one exit, the first one first."""
    last = len(seen.costs) - 1
    return [
        ExitPolicy("margin", tuple(-math.inf if n >= exit_ else math.inf for n in range(last)))
        for exit_ in range(last + 1)
    ]


def oracle(seen: HeldOut) -> tuple[float, float]:
    """Return error and mean MACs of a bound on policies that drop no labels: it knows the classes.

    Each sample leaves at the first exit that names its class, or, where none does, at the first.
    """
    right = seen.history.argmax(dim=2) == seen.labels
    first = right.int().argmax(dim=0)
    _, macs = dropped(full_depth(len(seen.costs)), seen)
    samples = torch.arange(len(seen.labels))
    return float((~right.any(dim=0)).double().mean()), float(macs[first, samples].mean())


def shuffled(outcome: Outcome, seen: HeldOut) -> tuple[float, float]:
    """Return error and mean MACs where as many samples leave at each exit, chosen at random.

    No labels are dropped, so in a sweep this costs more than a policy that drops some.
    """
    order = torch.randperm(len(seen.labels), generator=seeds.generator(0, "shuffled exits"))
    exits, samples = outcome.exits[order], torch.arange(len(order))
    answers = seen.history.argmax(dim=2)[exits, samples]
    _, macs = dropped(full_depth(len(seen.costs)), seen)
    return float((answers != seen.labels).double().mean()), float(macs[exits, samples].mean())
