"""Pairs of inputs: who is shown with whom, and how much memory it takes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import onward as ow
from onward.recipes.towers import PairOfInputs


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return made


def pairs(labels, seed=0):
    """Return the number of the sample that each sample is shown with."""
    numbers = torch.arange(float(len(labels)))[:, None]
    batch = ow.Batch(numbers, {"label": torch.as_tensor(labels)})
    view = PairOfInputs().views(batch, torch.Generator().manual_seed(seed), None)["pair"]
    assert view.inputs["left"].equal(numbers)
    return view.inputs["right"].flatten().long(), view


def test_half_of_the_others_are_of_the_own_class_and_all_that_fit_are_as_likely():
    # Each sample 2,000 times over, so that it is itself hardly ever drawn by chance.
    kinds = torch.tensor([5, 1, 1, 9, 1, 5])
    partner, view = pairs(kinds.repeat(2000))
    drawn = torch.zeros(6, 6).index_put_(
        (torch.arange(12000) % 6, partner % 6), torch.tensor(1 / 2000), accumulate=True
    )
    is_alike = kinds[:, None] == kinds
    shares = sum(fits / fits.sum(dim=1, keepdim=True) / 2 for fits in (is_alike, ~is_alike))

    assert (drawn - shares).abs().max() < 0.05
    assert view.targets["other"].equal(view.label[partner])
    assert view.targets["agree"].equal(view.label[partner] == view.label)


def test_no_sample_is_shown_with_itself():
    labels = torch.tensor([3, 0, 0, 3, 2, 0]).repeat(3)

    assert not any((pairs(labels, seed)[0] == torch.arange(18)).any() for seed in range(50))


@pytest.mark.parametrize(("labels", "agree"), [([4, 4, 4], True), ([4, 2, 9], False)])
def test_where_no_sample_fits_any_other_is_taken(labels, agree):
    seen = {seed: pairs(labels, seed) for seed in range(50)}

    assert all((view.targets["agree"] == agree).all() for _, view in seen.values())
    assert {int(partner[0]) for partner, _ in seen.values()} == {1, 2}


def test_pairs_of_a_whole_shard_take_no_matrix_of_all_pairs():
    with Largest() as largest:
        pairs(torch.arange(2000) % 10)

    assert largest.numbers == 2000
