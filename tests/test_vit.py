"""Vision transformers in blocks."""

import pytest
import torch

import onward as ow
from onward.batch import Batch
from onward.network.passes import passes

SMALL = {"layers": 3, "layers_per_block": 1, "dim": 16, "attention_heads": 2}


def network_of(shape, **changes):
    recipe = ow.RECIPES["vit"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = ow.DataInfo(input_shape=shape, num_classes=5, is_image=True)
        return recipe(recipe.settings(**SMALL | changes), data)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12), (6, 4, 16)])
def test_images_of_any_channels_become_a_token_a_patch(shape):
    network = network_of(shape)

    outputs = [p.outputs.tensor for p in passes(network, Batch(torch.rand(2, *shape)))]

    places = shape[1] * shape[2] // 16
    assert [tuple(tokens.shape) for tokens in outputs] == [(2, places, 16)] * 3


def test_a_patch_is_seen_by_all_others_and_its_position_counts():
    network, images = network_of((1, 8, 8)), torch.rand(2, 1, 8, 8)
    changed = images.clone()
    changed[:, :, 4:, 4:] += 1
    swapped = torch.cat([images[:, :, 4:], images[:, :, :4]], dim=2)

    before, after, moved = (
        next(passes(network, Batch(x))).outputs.tensor for x in (images, changed, swapped)
    )

    assert (before != after).any(dim=2).all()
    assert not torch.allclose(moved.mean(dim=1), before.mean(dim=1))


@pytest.mark.parametrize(("per_block", "blocks"), [(1, 3), (2, 2), (3, 1), (9, 1), ("all", 1)])
def test_layers_are_grouped_into_blocks(per_block, blocks):
    assert len(network_of((1, 8, 8), layers_per_block=per_block).all_blocks) == blocks


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((64,), {}, r"vit is for images of shape .*shape \(64,\)"),
        ((1, 28, 30), {}, r"28 x 30 pixels .*network.patch = 4 .* one of 1, 2, or give"),
        (
            (3, 8, 8),
            {"dim": 15},
            r"divisible by network.attention_heads.* Set network.dim to 14 or 16",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_numbers(shape, changes, message):
    with pytest.raises(ow.SettingError, match=message):
        network_of(shape, **changes)
