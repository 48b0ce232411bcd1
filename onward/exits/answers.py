"""Inference with early exit: each sample goes no deeper than its policy demands."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from onward.arguments import check_arguments
from onward.batch import CHUNK_SAMPLES, Batch, in_chunks
from onward.data.numbers import Numbers
from onward.exits.policies import ExitPolicy
from onward.network.networks import Forward, Network


@dataclass(frozen=True, slots=True)
class Answers:
    """What inference with early exit says of some samples."""

    labels: Int[Tensor, " samples"]
    """The class of each sample."""

    exits: Int[Tensor, " samples"]
    """The exit at which each sample left, from 0."""

    scores: Float[Tensor, "samples classes"]
    """The class scores there; -inf for labels that were dropped before."""

    passes: Int[Tensor, "exits samples"]
    """Passes of each sample through the blocks up to each exit since the last: 1, or one for each
    label that is left; 0 after it has left, unless the structure of the batch needs it."""


@torch.no_grad()
def answer(
    network: Network,
    x: Numbers | Batch,
    policy: ExitPolicy,
    *,
    batch_size: int = CHUNK_SAMPLES,
) -> Answers:
    """Predict the classes of samples, see `onward.answer`."""
    check_arguments(answer, {"policy": policy})
    parts = in_chunks(network.checked(x), batch_size)
    found = [answers_to(network, part, policy) for part in parts]
    return Answers(
        torch.cat([part.labels for part in found]),
        torch.cat([part.exits for part in found]),
        torch.cat([part.scores for part in found]),
        torch.cat([part.passes for part in found], dim=1),
    )


def answers_to(network: Network, batch: Batch, policy: ExitPolicy) -> Answers:
    """Return the answers to samples that were checked before, all at once, see `answer`."""
    forward = Forward(network, batch)
    num_exits, num_samples = len(forward.fold.exits), len(batch)
    policy.check(num_exits, is_sweep=forward.readout.sweeps)
    exits = torch.zeros(num_samples, dtype=torch.int64)
    scores = torch.zeros(num_samples, network.num_classes)
    passes = torch.zeros(num_exits, num_samples, dtype=torch.int64)
    # Policies are asked on the processor.
    each, device = forward.samples.cpu().bincount(minlength=num_samples), network.device
    left, history = torch.arange(num_samples), torch.zeros(0, num_samples, network.num_classes)
    while len(left):
        found = forward.step()
        if found is None:
            continue
        number = len(history)
        passed = slice(None) if batch.structure else left
        passes[number, passed] = each[passed]
        history = torch.cat([history, found[None].to(history)])
        leaves = policy.leaves(history)
        exits[left[leaves]], scores[left[leaves]] = number, history[-1, leaves]
        if bool(leaves.all()):
            break
        if bool(leaves.any()):
            stays = (~leaves).nonzero().squeeze(1)
            forward.keep(stays.to(device))
            left, history = left[stays], history[:, stays]
        if forward.readout.sweeps and policy.drops:
            alive = policy.stays(history)
            forward.drop(alive.to(device))
            if not batch.structure:
                each[left] = alive.sum(dim=1)
    return Answers(scores.argmax(dim=1), exits, scores, passes)
