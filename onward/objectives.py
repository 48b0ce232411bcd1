"""Local objectives: they turn a block's activities into a loss, and into the block's scores."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onward.views import View, Views

ALL = slice(None)
"""All units of a block."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """How well a block does on a batch, beside the loss."""

    accuracy: Float[Tensor, ""]
    """Share of rows that the block itself puts on the right side, or into the right class."""

    goodness_gap: Float[Tensor, ""]
    """Mean goodness a unit of positives minus that of negatives; NaN where there is no goodness."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """What a closed form yields for one batch."""

    loss: Float[Tensor, ""]
    """Mean loss of the batch."""

    activities: dict[str, Tensor]
    """Derivative of the loss with respect to the activities of each view."""

    parameters: dict[str, Tensor]
    """Derivative with respect to the objective's own parameters, by name."""

    metrics: Metrics
    """Figures to watch, from what was computed anyway."""


class Objective(nn.Module, ABC):
    """The goal of one block, and of no other.

    It may own parameters. Those of `ships` objectives are part of the model; the others are for
    training only.
    """

    views: tuple[str, ...]
    """Names of the views it learns from."""

    ships: bool
    """Whether inference needs its parameters."""

    @abstractmethod
    def loss(self, outputs: Views) -> Float[Tensor, ""]:
        """Return the mean loss, to be differentiated by autograd: the definition."""

    def gradient(self, outputs: Views) -> Gradient:
        """Return the derivatives of `loss` in closed form, in the precision of the activities."""
        return self.gradient_from(self.partial(outputs, ALL), outputs, ALL)

    def partial(self, outputs: Views, units: slice) -> Tensor:
        """Return what some units add to the figures of each row that the loss depends on.

        Args:
            outputs: The activities of these units.
            units: Which they are.
        """
        raise NotImplementedError

    def gradient_from(self, total: Tensor, outputs: Views, units: slice) -> Gradient:
        """Return the derivatives for some units, given `partial` summed over all units."""
        raise NotImplementedError

    @abstractmethod
    def scores(self, activities: Tensor) -> Tensor:
        """Return one row of class scores a row, or one goodness a row."""

    @abstractmethod
    def metrics(self, outputs: Views) -> Metrics:
        """Return figures to watch in training."""

    def nudge(self, outputs: Views) -> dict[str, Tensor]:
        """Return what to add to the derivative of the pre-activations, by view.

        For rules that are no derivative of a loss, and that also reach units that are silent.
        (Where a module does not show its pre-activations, it is added to that of its outputs.)
        Called once a step, before the update, and may change running state.
        """
        return {}


class CrossEntropy(Objective):
    """Cross-entropy of a head that reads this block alone.

    Args:
        head: Maps activities to class scores (logits). A linear layer without bias has a closed
            form; any other module is trained by autograd.

    Source:
        Aktemur et al. 2024, arXiv:2404.08573, section 4.4; Nøkland & Eidnes 2019,
        arXiv:1901.06656 ("pred").
    """

    views = ("input",)
    ships = True

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def logits(self, activities: Tensor) -> Float[Tensor, "rows classes"]:
        logits: Tensor = self.head(activities)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, outputs: Views) -> Float[Tensor, ""]:
        (view,) = outputs.values()
        return F.cross_entropy(self.logits(_tensor(view)), view.labels)

    def partial(self, outputs: Views, units: slice) -> Tensor:
        """Return what these units add to the logits."""
        (view,) = outputs.values()
        assert isinstance(self.head, nn.Linear)
        activities = _tensor(view)
        weight = self.head.weight[:, units].to(activities.dtype)
        return F.linear(activities, weight).to(self.head.weight.dtype)

    def gradient_from(self, total: Tensor, outputs: Views, units: slice) -> Gradient:
        ((name, view),) = outputs.items()
        assert isinstance(self.head, nn.Linear)
        activities = _tensor(view)
        weight = self.head.weight[:, units].to(activities.dtype)
        log_p = total.log_softmax(dim=1)
        error = log_p.exp()
        error[torch.arange(len(error)), view.labels] -= 1
        error = (error / len(error)).to(activities.dtype)
        return Gradient(
            F.nll_loss(log_p, view.labels),
            {name: error @ weight},
            {"head.weight": (error.T @ activities).to(self.head.weight.dtype)},
            _classified(log_p, view),
        )

    def scores(self, activities: Tensor) -> Float[Tensor, "rows classes"]:
        """Return log-probabilities of the classes."""
        return self.logits(activities).log_softmax(dim=1)

    def metrics(self, outputs: Views) -> Metrics:
        (view,) = outputs.values()
        return _classified(self.logits(_tensor(view)), view)


class Threshold(Objective):
    """Goodness above a threshold for positives and below it for negatives.

    With the mean square g of a row's activities, the probability that it is positive is
    sigmoid(slope (g - threshold)), and the loss is the mean binary cross-entropy over positives
    and negatives.

    Args:
        width: Units of the block.
        threshold: Mean square at which a row is a coin toss, in squared activity units.
        slope: Steepness, per mean square. Hinton's sum of squares minus the number of units is a
            slope of `width`; the sharper, the earlier deep blocks learn.
        peer: Strength of peer normalisation, which pulls each unit's mean activity towards that
            of all units, the silent ones too. 0 turns it off.

    Source:
        Hinton 2022, arXiv:2212.13345, section 2; peer normalisation as in his Matlab code: the
        running mean keeps 0.9 a batch, starts at 0.5, and sees positives only.
    """

    views = ("positive", "negative")
    ships = False

    peer_mean: Tensor

    def __init__(self, width: int, *, threshold: float, slope: float, peer: float = 0.0) -> None:
        super().__init__()
        self.threshold, self.slope, self.peer = threshold, slope, peer
        self.register_buffer("peer_mean", torch.full((width,), 0.5))

    def goodness(self, activities: Tensor) -> Float[Tensor, " rows"]:
        """Return the mean square of each row."""
        return self._squares(activities) / activities.shape[1:].numel()

    def _squares(self, activities: Tensor) -> Float[Tensor, " rows"]:
        flat = activities.flatten(1)
        dtype = torch.promote_types(flat.dtype, torch.float32)
        length: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=dtype)
        return length.square()

    def _signed_logit(self, name: str, goodness: Tensor) -> Float[Tensor, " rows"]:
        sign = 1.0 if name == "positive" else -1.0
        return sign * self.slope * (goodness - self.threshold)

    def loss(self, outputs: Views) -> Float[Tensor, ""]:
        # softplus(-z) is -log(sigmoid(z)) without the overflow of log(1 + exp(-z)).
        losses = [
            F.softplus(-self._signed_logit(name, self.goodness(_tensor(view))))
            for name, view in outputs.items()
        ]
        return torch.cat(losses).mean()

    def partial(self, outputs: Views, units: slice) -> Tensor:
        """Return the sum of squares of these units, the rows of all views one after the other."""
        return torch.cat([self._squares(_tensor(view)) for view in outputs.values()])

    def gradient_from(self, total: Tensor, outputs: Views, units: slice) -> Gradient:
        num_rows = len(total)
        each = _tensor(next(iter(outputs.values())))
        width = each.shape[1:].numel() if units == ALL else len(self.peer_mean)
        parts = (total / width).split([len(view.labels) for view in outputs.values()])
        goodness = dict(zip(outputs, parts, strict=True))
        losses, derivatives = [], {}
        for name, view in outputs.items():
            activities = _tensor(view)
            logit = self._signed_logit(name, goodness[name])
            losses.append(F.softplus(-logit))
            sign = 1.0 if name == "positive" else -1.0
            factor = -sign * torch.sigmoid(-logit) * (2 * self.slope / (width * num_rows))
            rows = factor.view(-1, *[1] * (activities.ndim - 1)).to(activities.dtype)
            derivatives[name] = activities * rows
        return Gradient(torch.cat(losses).mean(), derivatives, {}, self._separated(goodness))

    def nudge(self, outputs: Views) -> dict[str, Tensor]:
        if not self.peer:
            return {}
        activities = _tensor(outputs["positive"])
        mean = activities.mean(dim=0, dtype=self.peer_mean.dtype)
        self.peer_mean.mul_(0.9).add_(mean, alpha=0.1)
        # Toward the mean of all units: a step against this derivative raises the quiet ones.
        pull = (self.peer_mean - self.peer_mean.mean()) * (self.peer / len(activities))
        return {"positive": pull.to(activities.dtype).expand_as(activities)}

    def scores(self, activities: Tensor) -> Float[Tensor, " rows"]:
        """Return the goodness of each row as Hinton counts it: the sum of squares."""
        return self.goodness(activities) * activities.shape[1:].numel()

    def metrics(self, outputs: Views) -> Metrics:
        return self._separated(self._goodness(outputs))

    def _goodness(self, outputs: Views) -> dict[str, Tensor]:
        return {name: self.goodness(_tensor(view)) for name, view in outputs.items()}

    def _separated(self, goodness: dict[str, Tensor]) -> Metrics:
        right = [self._signed_logit(name, g) > 0 for name, g in goodness.items()]
        gap = goodness["positive"].mean() - goodness["negative"].mean()
        return Metrics(torch.cat(right).float().mean(), gap)


def _classified(scores: Tensor, view: View) -> Metrics:
    """Return the share of rows whose true class scores highest."""
    right = scores.argmax(dim=1) == view.labels
    return Metrics(right.float().mean(), torch.tensor(float("nan")))


def _tensor(view: View) -> Tensor:
    """Return the activities of a view that comes from one block."""
    assert isinstance(view.x, Tensor)
    return view.x
