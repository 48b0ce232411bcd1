"""Pairs of samples, and objectives that compare: positive and negative, pairs, whole batches."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from onward.batch import Batch
from onward.errors import SettingError
from onward.network.objectives import Metrics, Objective
from onward.network.samplers import Sampler, Views


def check_has_others(samples: int) -> None:
    """Refuse a mini-batch in which a sample has no other to be compared or mixed with.

    Raises:
        SettingError: It has one sample.
    """
    if samples < 2:
        raise SettingError(
            "A mini-batch of one sample has no other to be compared or mixed with. Set "
            "training.batch_size to 2 or more; where only the last mini-batch has one sample, "
            "--set training.drop_last=true leaves it out."
        )


class Symba(Objective):
    """More goodness for the positive than for the negative of the same sample, with no threshold.

    With goodness the mean square of the activities, the loss is softplus(-slope (g+ - g-)).

    Args:
        slope: How steep it is, per mean square.

    Source:
        Lee & Song 2023, arXiv:2303.08418 (SymBa).
    """

    views = ("positive", "negative")
    uses_weights = True
    metric_names = ("told_apart", "goodness_gap")

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def scores(self, outputs: Batch) -> Float[Tensor, " samples"]:
        """Return the goodness of each sample times the slope: a logit, as the loss has it."""
        return self.slope * self.goodness(outputs)

    def goodness(self, outputs: Batch) -> Float[Tensor, " samples"]:
        """Return the mean square of the activities of each sample."""
        flat = outputs.tensor.flatten(1)
        return flat.to(torch.promote_types(flat.dtype, torch.float32)).square().mean(dim=1)

    def describe(self) -> dict[str, float]:
        return {"slope": self.slope}

    def gap(self, outputs: Views) -> Float[Tensor, " samples"]:
        """Return by how much the positive of each sample leads."""
        positive, negative = (outputs[view].counted for view in self.views)
        return self.goodness(positive) - self.goodness(negative)

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Tensor:
        losses = F.softplus(-self.slope * self.gap(outputs))
        weights = outputs["positive"].counted.weights
        return (losses if weights is None else losses * weights).mean()

    def metrics(self, outputs: Views) -> Metrics:
        gap = self.gap(outputs)
        return {"told_apart": ((gap > 0).sum(), len(gap)), "goodness_gap": (gap.sum(), len(gap))}


class SupervisedContrast(Objective):
    """Samples of a class have activities that point the same way, and others do not.

    For each sample, the mean over those of its class of the negative log of a softmax, over all
    other samples of the mini-batch, of cosines divided by a temperature. Samples that are alone of
    their class count nothing.

    Args:
        temperature: What cosines are divided by.

    Source:
        Khosla et al. 2020, arXiv:2004.11362, equation 2, of each layer by itself.
    """

    views = ("input",)
    is_mean = False
    metric_names = ("paired",)

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Tensor:
        (view,) = outputs.values()
        labels = view.counted.label
        check_has_others(len(labels))
        units = F.normalize(view.counted.tensor.flatten(1).float())
        is_other = ~torch.eye(len(units), dtype=torch.bool, device=units.device)
        # In float32, also where the block computes in bf16.
        with torch.autocast(units.device.type, enabled=False):
            cosines = (units @ units.T / self.temperature).masked_fill(~is_other, float("-inf"))
        log_p = cosines.log_softmax(dim=1).masked_fill(~is_other, 0.0)
        is_alike = (labels[:, None] == labels) & is_other
        alike = is_alike.sum(dim=1)
        losses = -(log_p * is_alike).sum(dim=1) / alike.clamp_min(1)
        return losses.sum() / (alike > 0).sum().clamp_min(1)

    def metrics(self, outputs: Views) -> Metrics:
        """Return how many samples have another of their class: nothing is learned from others."""
        (view,) = outputs.values()
        labels = view.counted.label
        is_paired = (labels[:, None] == labels).sum(dim=1) > 1
        return {"paired": (is_paired.sum(), len(labels))}


class Pairs(Sampler):
    """Each sample with another of its batch, and whether the two are of one class.

    Of a batch in a random order each is paired with the next. In a chapter plan a batch is all
    samples of a shard, which are paired anew in each chapter; in a stream plan, a mini-batch.

    Source:
        Ahamed et al. 2023, arXiv:2305.02927.

    Example:
        >>> batch = Batch(torch.eye(2), {"label": torch.tensor([3, 3])})
        >>> views = Pairs().views(batch, torch.Generator(), None)
        >>> views["second"].tensor.flip(0).equal(views["first"].tensor), views["first"].targets
        (True, {'label': tensor([3, 3]), 'agree': tensor([True, True])})
    """

    names = ("first", "second")

    def views(self, batch: Batch, draw: torch.Generator, hints: Tensor | None) -> dict[str, Batch]:
        check_has_others(len(batch))
        order = torch.randperm(len(batch), generator=draw, device=batch.device)
        partner = torch.empty_like(order)
        partner[order] = order.roll(-1)
        second = batch.take(partner)
        agree = batch.label == second.label
        return {"first": batch.with_targets(agree=agree), "second": second}


class PairContrast(Objective):
    """Activities of two samples point the same way where their classes agree, and else do not.

    The loss of a pair is 1 - cosine where they agree, and else the cosine, where it is above the
    margin. Sampled by `Pairs`.

    Args:
        margin: Cosine below which pairs of different classes are left alone.

    Source:
        Ahamed et al. 2023, arXiv:2305.02927, the local and the global stage.
    """

    views = ("first", "second")
    metric_names = ("told_apart",)

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def cosines(self, outputs: Views) -> Float[Tensor, " pairs"]:
        first, second = (outputs[name].counted.tensor.flatten(1).float() for name in self.views)
        return F.cosine_similarity(first, second)

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Tensor:
        agree = inputs["first"].counted.targets["agree"]
        cosines = self.cosines(outputs)
        return torch.where(agree, 1 - cosines, (cosines - self.margin).relu()).mean()

    def metrics(self, outputs: Views) -> Metrics:
        """Return how many pairs lie on their side of the middle between the margin and 1."""
        agree = outputs["first"].counted.targets["agree"]
        right = (self.cosines(outputs) > (self.margin + 1) / 2) == agree
        return {"told_apart": (right.sum(), len(right))}
