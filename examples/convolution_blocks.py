"""Blocks of any layers: convolutions, with a head on pooled features as the goal of each block.

    python examples/convolution_blocks.py
    torchrun --nproc-per-node 2 examples/convolution_blocks.py

A block is any module with an objective of its own. This script is the same for one process and
for several, and ends in the same weights: every process builds the same network from the same
data, and rank 0 gets the result.
"""

from itertools import pairwise

import torch
from torch import nn

import onward as ow

CHANNELS = (1, 16, 32, 32)


def convolution_block(channels_in: int, channels_out: int) -> ow.Block:
    layers = nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.Dropout(0.1),
    )
    pooled = channels_out * 4 * 4  # Features that are left of 8 x 8 pixels.
    head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(pooled, 10))
    return ow.Block(layers, ow.CrossEntropy(head), ow.Adam(lr=2e-3))


def main() -> None:
    torch.manual_seed(0)  # The same first weights in all processes.
    blocks = [convolution_block(*pair) for pair in pairwise(CHANNELS)]
    network = ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=10)
    result = ow.train(
        network,
        ow.load_data("digits"),
        training=ow.TrainingConfig(epochs=4, batch_size=50, schedule="warmup"),
    )
    if result is not None:
        each = ", ".join(f"{accuracy:.1%}" for accuracy in result.per_block)
        print(f"test accuracy {result.accuracy:.1%}, of each block alone {each}")
        facts = result.facts
        print(f"ranks {facts['world_size']}, weights {facts['weights_sha256'][:16]}")


if __name__ == "__main__":
    main()
