"""Two towers: networks of one shape and other weights, which see a pair of samples."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onward.batch import Batch
from onward.network.layers import normalize_length
from onward.network.objectives import Metrics, Objective, classified
from onward.network.samplers import Sampler, Views
from onward.recipes.contrasts import check_has_others

BOTH = ("left", "right")
"""Names of the towers, and of what each of them sees."""


@dataclass(frozen=True)
class PairOfInputs(Sampler):
    """One view of two inputs: each sample, and another of its mini-batch.

    Half of the others are of the sample's own class where the mini-batch has one. Inference shows
    both towers the same sample.

    Example:
        >>> batch = Batch(torch.eye(2), {"label": torch.tensor([3, 3])})
        >>> view = PairOfInputs().views(batch, torch.Generator(), None)["pair"]
        >>> view.inputs["right"].tolist(), view.targets["agree"].tolist()
        ([[0.0, 1.0], [1.0, 0.0]], [True, True])
    """

    names = ("pair",)

    def views(self, batch: Batch, draw: torch.Generator, hints: Tensor | None) -> dict[str, Batch]:
        labels, size = batch.label, len(batch)
        check_has_others(size)
        # In order of their classes, those of a class lie from `first` up to `after`. No matrix of
        # all pairs: in a chapter plan a batch is a whole shard.
        in_order, order = labels.sort(stable=True)
        first = torch.searchsorted(in_order, labels)
        after = torch.searchsorted(in_order, labels, right=True)
        own = after - first
        wanted = torch.rand(size, generator=draw, device=batch.device) < 0.5
        # Where there is none that fits, any other.
        is_alike = torch.where(wanted, own > 1, own == size)
        drawn = torch.randint(2**62, (size,), generator=draw, device=batch.device)
        drawn %= torch.where(is_alike, own - 1, size - own)
        alike = first + (order.argsort() - first + 1 + drawn) % own
        partner = order[torch.where(is_alike, alike, (after + drawn) % size)]
        x, other = batch.tensor, batch.label[partner]
        pair = batch.replace(inputs={"left": x, "right": x[partner]})
        return {"pair": pair.with_targets(other=other, agree=labels == other)}

    def neutral(self, batch: Batch) -> Batch:
        return batch.replace(inputs={name: batch.tensor for name in BOTH})


class Towers(nn.Module):
    """A layer of each tower.

    Args:
        in_features: Inputs of a sample.
        out_features: Units.
        is_last: Whether there is no ReLU.
    """

    def __init__(self, in_features: int, out_features: int, *, is_last: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(in_features, out_features) for name in BOTH})
        self.is_last = is_last

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        each = {
            n: layer(normalize_length(inputs[n].flatten(1))) for n, layer in self.layers.items()
        }
        return each if self.is_last else {name: tensor.relu() for name, tensor in each.items()}


class Agreement(Objective):
    """The towers' layers put out the same for samples of a class, and something else for others.

    Args:
        units: Units of each layer.
        by: `cosine`: 1 - cosine where classes agree, and else the cosine, where it is positive.
            `classifier`: the cross-entropy of whether they agree, by a linear map of the products
            of units of both towers.

    Source:
        Gananath 2024, arXiv:2405.03432: a representation loss or a classification loss of every
        pair of layers. What the classifier reads is inferred.
    """

    metric_names = ("told_apart",)

    def __init__(self, units: int, by: str) -> None:
        super().__init__()
        self.classifier = nn.Linear(units, 1) if by == "classifier" else None

    def logits(self, outputs: Batch) -> Float[Tensor, " pairs"]:
        """Return how alike the two are, positive where they count as of one class."""
        assert isinstance(outputs.inputs, dict)
        left, right = (outputs.inputs[name].float() for name in BOTH)
        if self.classifier is None:
            return F.cosine_similarity(left, right)
        logits: Tensor = self.classifier(normalize_length(left) * normalize_length(right))
        return logits.squeeze(1)

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Tensor:
        alike = self.logits(outputs["pair"])
        agree = inputs["pair"].targets["agree"]
        if self.classifier is not None:
            return F.binary_cross_entropy_with_logits(alike, agree.to(alike.dtype))
        return torch.where(agree, 1 - alike, alike.relu()).mean()

    def metrics(self, outputs: Views) -> Metrics:
        """Return how many pairs are judged rightly."""
        alike, agree = self.logits(outputs["pair"]), outputs["pair"].targets["agree"]
        right = (alike > (0.5 if self.classifier is None else 0.0)) == agree
        return {"told_apart": (right.sum(), len(right))}


class EachItsOwnClass(Objective):
    """Each tower's last layer names the class of the sample that it sees: cross-entropy of both."""

    metric_names = ("accuracy",)

    def log_p(self, outputs: Batch) -> tuple[Tensor, Tensor]:
        assert isinstance(outputs.inputs, dict)
        left, right = (outputs.inputs[name].float().log_softmax(dim=1) for name in BOTH)
        return left, right

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Tensor:
        left, right = self.log_p(outputs["pair"])
        targets = inputs["pair"].targets
        return F.nll_loss(left, targets["label"]) + F.nll_loss(right, targets["other"])

    def scores(self, outputs: Batch) -> Float[Tensor, "samples classes"]:
        """Return the mean of the towers' log-probabilities."""
        return torch.stack(self.log_p(outputs)).mean(dim=0)

    def metrics(self, outputs: Views) -> Metrics:
        """Return how many samples the left tower named rightly."""
        return classified(self.log_p(outputs["pair"])[0], outputs["pair"].label)
