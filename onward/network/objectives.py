"""Local objectives: they turn what a block puts out into a loss, and into the block's scores."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onward.arguments import check_arguments
from onward.batch import Batch
from onward.errors import SettingError
from onward.network.samplers import Views

Metrics = Mapping[str, tuple[Tensor, int]]
"""Figures to watch: by name a sum over samples, and how many samples are in it."""

Losses = Tensor | dict[str, Tensor]
"""One loss, or several by name, each of which trains parameters of its own."""


class Objective(nn.Module, ABC):
    """The local objective of one block.

    Only `loss` is required. It may own parameters, which are trained along with the module's: a
    head that computes scores, or helpers that only training uses.
    """

    views: tuple[str, ...] | None = None
    """Views that it learns from; None for all that the sampler makes. `("neutral",)` is what
    inference sees: a head that reads several blocks learns from it."""

    uses_weights: bool = False
    """Whether the loss counts samples by the `weights` of a batch; otherwise they are refused."""

    is_mean: bool = True
    """Whether the loss is a mean over samples, so that it may be computed in slices of them."""

    metric_names: tuple[str, ...] = ()
    """Names of what `metrics` returns."""

    test_metric_names: tuple[str, ...] = ()
    """Those of them that are also reported on test samples, by the neutral view. For `nats`, a
    negative log-probability, the perplexity is reported too."""

    helpers: tuple[str, ...] = ()
    """Names of members that only training uses; the others are part of the model."""

    @abstractmethod
    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Losses:
        """Return the loss, to be differentiated by autograd.

        Args:
            inputs: What the block was given, by view.
            outputs: The same batches with what the block has put out as their inputs.
            draw: Generator for all randomness of the loss.

        Returns:
            The loss; or several by name, each of which trains the parameters in its `group`.
        """

    def scores(self, outputs: Batch) -> Tensor:
        """Return class scores, a row per sample, or one goodness per sample.

        Raises:
            NotImplementedError: The objective has none, and then `has_scores` is False.
        """
        raise NotImplementedError

    @property
    def has_scores(self) -> bool:
        """Whether it has scores, which a readout may read."""
        return type(self).scores is not Objective.scores

    @property
    def scores_are_logits(self) -> bool:
        """Whether class scores are the log-softmax of what the block puts out, and nothing else."""
        return False

    def shipped(self) -> dict[str, Tensor]:
        """Return the parameters and buffers that inference needs, by name: those of its scores."""
        state: dict[str, Tensor] = self.state_dict(keep_vars=True) if self.has_scores else {}
        return {name: t for name, t in state.items() if name.partition(".")[0] not in self.helpers}

    def activities(self, outputs: Tensor) -> Tensor:
        """Return the part of the outputs that are activities of units; by default all of them.

        Another part may be handed on for later blocks, such as a label.
        """
        return outputs

    def metrics(self, outputs: Views) -> Metrics:
        """Return figures to watch in training, under the names in `metric_names`."""
        return {}

    def group(self, loss: str) -> tuple[str, ...]:
        """Return what one of several losses trains: names of modules or parameters in the block.

        Such as `module`, `module.encoder` or `objective.decoder`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has several losses, {loss} among them, and needs a method "
            f"`group(loss)`, as ow.Objective.group is: it says which parameters each of them "
            f'trains, such as return ("module",).'
        )

    @property
    def has_extra_gradient(self) -> bool:
        """Whether there is something that `extra_gradient` adds."""
        return type(self).extra_gradient is not Objective.extra_gradient

    def extra_gradient(self, outputs: Views) -> dict[str, Tensor]:
        """Return what to add to the derivative with respect to the pre-activations, by view.

        For rules that are not the derivative of a loss, also for units that are silent. A module
        whose `forward` returns the ReLU of its pre-activations shows them by a method
        `pre_activations` in the same class. One that puts out something else made of them says so
        by a method `from_pre_activations(inputs, pre_activations)`. For others it is added to the
        derivative with respect to the outputs. Called once per step, before the update, and may
        change running state.
        """
        return {}

    def describe(self) -> dict[str, float]:
        """Return what scores depend on beside parameters, for the header of a model file."""
        return {}


class CrossEntropy(Objective):
    """Cross-entropy of a head that reads this block alone.

    Args:
        head: Maps activities to class scores (logits). A linear layer without bias has a closed
            form; any other module is trained by autograd.
        views: The view it learns from; `("neutral",)` for a head that reads several blocks.
        label_smoothing: Share of each sample that counts for all classes alike; it has no closed
            form.

    Source:
        Aktemur et al. 2024, arXiv:2404.08573, section 4.4; Nøkland & Eidnes 2019,
        arXiv:1901.06656 ("pred").
    """

    uses_weights = True
    metric_names = ("accuracy",)

    def __init__(
        self,
        head: nn.Module,
        *,
        views: tuple[str, ...] = ("input",),
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(CrossEntropy.__init__, {"head": head})
        if not 0 <= label_smoothing < 1:
            raise SettingError(
                f"label_smoothing is a share, from 0 to below 1; got {label_smoothing}."
            )
        self.head = head
        self.views = views
        self.label_smoothing = label_smoothing
        self._known: tuple[Tensor, Tensor] | None = None
        """Activities of the last loss, and their logits, until the metrics have been asked for."""

    def logits(self, activities: Tensor) -> Float[Tensor, "samples classes"]:
        logits: Tensor = self.head(activities)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Tensor:
        (view,) = (view.counted for view in outputs.values())
        logits, smoothing = self.logits(view.tensor), self.label_smoothing
        self._known = view.tensor.detach(), logits.detach()
        if view.weights is None:
            return F.cross_entropy(logits, view.label, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, view.label, reduction="none", label_smoothing=smoothing)
        return (losses * view.weights).mean()

    def scores(self, outputs: Batch) -> Float[Tensor, "samples classes"]:
        """Return log-probabilities of the classes."""
        return self.logits(outputs.tensor).log_softmax(dim=1)

    @property
    def scores_are_logits(self) -> bool:
        return isinstance(self.head, nn.Identity)

    def metrics(self, outputs: Views) -> Metrics:
        """Return how many samples were right: in training, by the logits of the loss."""
        (view,) = (view.counted for view in outputs.values())
        known, self._known = self._known, None
        if known is not None and known[0].is_set_to(view.tensor):
            return classified(known[1], view.label)
        return classified(self.logits(view.tensor), view.label)


class Threshold(Objective):
    """Goodness above a threshold for positives and below it for negatives.

    With the mean square g of a sample's activities, the probability that it is positive is
    sigmoid(slope (g - threshold)), and the loss is the mean binary cross-entropy over positives
    and negatives.

    Args:
        width: Units of the block; channels, where it puts out images.
        threshold: Mean square at which a sample is a coin toss, in squared activity units.
        slope: Steepness, per mean square. Hinton's sum of squares minus the number of units is a
            slope of `width`; the sharper, the earlier deep blocks learn.
        peer: Strength of peer normalisation, which pulls each unit's mean activity towards that
            of all units, the silent ones too. 0 turns it off.

    Source:
        Hinton 2022, arXiv:2212.13345, section 2; peer normalisation as in his Matlab code: the
        running mean keeps 0.9 per batch, starts at 0.5, and sees positives only.
    """

    views = ("positive", "negative")
    uses_weights = True
    metric_names = ("told_apart", "goodness_gap")
    helpers = ("peer_mean",)

    peer_mean: Tensor

    def __init__(self, width: int, *, threshold: float, slope: float, peer: float = 0.0) -> None:
        super().__init__()
        self.threshold, self.slope, self.peer = threshold, slope, peer
        self.register_buffer("peer_mean", torch.full((width,), 0.5))

    def goodness(self, activities: Tensor) -> Float[Tensor, " samples"]:
        """Return the mean square of each sample."""
        return self.squares(activities) / activities.shape[1:].numel()

    def squares(self, activities: Tensor) -> Float[Tensor, " samples"]:
        """Return the sum of squares of each sample, in float32 at least."""
        flat = activities.flatten(1)
        dtype = torch.promote_types(flat.dtype, torch.float32)
        length: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=dtype)
        return length.square()

    def signed_logit(self, name: str, goodness: Tensor) -> Float[Tensor, " samples"]:
        """Return how sure the block is that a sample of a view is of its kind, as a logit."""
        sign = 1.0 if name == "positive" else -1.0
        return sign * self.slope * (goodness - self.threshold)

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Tensor:
        # softplus(-z) is -log(sigmoid(z)) without the overflow of log(1 + exp(-z)).
        losses = []
        for name, view in self._counted(outputs).items():
            loss = F.softplus(-self.signed_logit(name, self.goodness(view.tensor)))
            losses.append(loss if view.weights is None else loss * view.weights)
        return torch.cat(losses).mean()

    def extra_gradient(self, outputs: Views) -> dict[str, Tensor]:
        view = outputs["positive"]
        activities, counted = view.tensor, view.counted.tensor
        flat = counted.flatten(2).mean(dim=2) if counted.ndim > 2 else counted
        mean = flat.mean(dim=0, dtype=self.peer_mean.dtype)
        self.peer_mean.mul_(0.9).add_(mean, alpha=0.1)
        # Toward the mean of all units: a step against this derivative raises the quiet ones.
        places = len(counted) * activities.shape[2:].numel()
        pull = (self.peer_mean - self.peer_mean.mean()) * (self.peer / places)
        pull = pull.to(activities.dtype).view(-1, *[1] * (activities.ndim - 2))
        if view.index is None:
            return {"positive": pull.expand_as(activities)}
        extra = torch.zeros_like(activities)
        extra[view.index] = pull
        return {"positive": extra}

    @property
    def has_extra_gradient(self) -> bool:
        return bool(self.peer)

    def scores(self, outputs: Batch) -> Float[Tensor, " samples"]:
        """Return the goodness of each sample as Hinton counts it: the sum of squares."""
        activities = outputs.tensor
        return self.goodness(activities) * activities.shape[1:].numel()

    def metrics(self, outputs: Views) -> Metrics:
        views = self._counted(outputs)
        return self.separated({n: self.goodness(v.tensor) for n, v in views.items()})

    def separated(self, goodness: Mapping[str, Tensor]) -> Metrics:
        """Return the figures that follow from the goodness of each view."""
        right = torch.cat([self.signed_logit(name, g) > 0 for name, g in goodness.items()])
        num = len(goodness["positive"])
        gap = goodness["positive"].mean() - goodness["negative"].mean()
        return {"told_apart": (right.sum(), len(right)), "goodness_gap": (gap * num, num)}

    def describe(self) -> dict[str, float]:
        return {"threshold": self.threshold, "slope": self.slope}

    def _counted(self, outputs: Views) -> dict[str, Batch]:
        return {name: view.counted for name, view in outputs.items()}


def classified(scores: Tensor, label: Tensor) -> Metrics:
    """Return how many samples score their true class highest."""
    right = scores.argmax(dim=1) == label
    return {"accuracy": (right.sum(), len(right))}
