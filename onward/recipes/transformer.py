"""Layers of transformers in blocks, which the recipes for text and images share."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from onward.batch import Batch
from onward.data.text import BYTES, NEXT
from onward.errors import DataError, SettingError
from onward.network.blocks import Block
from onward.network.networks import Network
from onward.network.objectives import Metrics, Objective
from onward.network.optimizers import Optimizer
from onward.network.readouts import SumOfHeads
from onward.network.samplers import Plain, Views
from onward.recipes.transformer_config import TransformerConfig


def transformer(
    config: TransformerConfig,
    embedding: nn.Module,
    objective: Callable[[int], Objective],
    rule: Optimizer,
    *,
    num_classes: int,
    is_causal: bool,
) -> Network:
    """Build layers of a transformer, as many in a block as settings say; the last block is read.

    Args:
        config: Settings.
        embedding: Makes tokens of samples; it learns with the first block.
        objective: Returns the objective of a block by its number.
        rule: How weights follow their gradients.
        num_classes: Number of classes.
        is_causal: See `Attention`.

    Raises:
        SettingError: Attention heads do not share the numbers of a token alike.
    """
    heads = config.attention_heads
    parts = heads * (2 if is_causal else 1)
    if config.dim % parts:
        lower = config.dim // parts * parts
        fits = f"{lower} or {lower + parts}" if lower else str(parts)
        raise SettingError(
            f"network.dim is {config.dim}; it must be divisible by "
            f"{'twice ' if is_causal else ''}network.attention_heads, which is {heads}. Set "
            f"network.dim to {fits}, or change network.attention_heads."
        )
    layers = [TransformerLayer(config.dim, heads, is_causal) for _ in range(config.layers)]
    size = config.layers if config.layers_per_block == "all" else config.layers_per_block
    blocks = []
    for number, first in enumerate(range(0, config.layers, size)):
        before = [] if number else [embedding]
        module = nn.Sequential(*before, *layers[first : first + size])
        blocks.append(Block(module, objective(number), rule))
    return Network(blocks, Plain(), SumOfHeads("last"), num_classes=num_classes)


class TransformerLayer(nn.Module):
    """Attention and two dense layers, each added to what it reads normalized (pre-norm).

    Args:
        dim: Numbers of a token.
        heads: Attention heads.
        is_causal: See `Attention`.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762; the order of norms is that of Radford et al. 2019
        (GPT-2).
    """

    def __init__(self, dim: int, heads: int, is_causal: bool) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(dim), Attention(dim, heads, is_causal))
        self.dense = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )

    def forward(
        self, tokens: Float[Tensor, "samples tokens dim"]
    ) -> Float[Tensor, "samples tokens dim"]:
        tokens = tokens + self.attention(tokens)
        found: Tensor = tokens + self.dense(tokens)
        return found


class Attention(nn.Module):
    """What each token reads from others.

    Args:
        dim: Numbers of a token.
        heads: Attention heads.
        is_causal: Whether a token reads those before it and itself alone, and knows by `rotated`
            how far away they are; otherwise it reads all, which bring their positions along.
    """

    def __init__(self, dim: int, heads: int, is_causal: bool) -> None:
        super().__init__()
        self.heads, self.is_causal = heads, is_causal
        self.inputs = nn.Linear(dim, 3 * dim, bias=False)
        self.outputs = nn.Linear(dim, dim, bias=False)

    def forward(
        self, tokens: Float[Tensor, "samples tokens dim"]
    ) -> Float[Tensor, "samples tokens dim"]:
        parts = self.inputs(tokens).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        if self.is_causal:
            query, key = (rotated(part).to(value.dtype) for part in (query, key))
        # The faster ways of a GPU have derivatives that differ from call to call.
        with nullcontext() if query.is_cpu else sdpa_kernel(SDPBackend.MATH):
            found = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        read: Tensor = self.outputs(found.transpose(1, 2).flatten(2))
        return read


def rotated(
    tokens: Float[Tensor, "samples heads tokens dim"],
) -> Float[Tensor, "samples heads tokens dim"]:
    """Turn pairs of numbers by angles that grow with the position of a token.

    Products of a turned query and a turned key then depend on how far apart the two tokens are.

    Source:
        Su et al. 2021, arXiv:2104.09864 (rotary position embedding).
    """
    length, half = tokens.shape[2], tokens.shape[3] // 2
    speed = 10_000 ** -(torch.arange(half, device=tokens.device) / half)
    angle = torch.arange(length, device=tokens.device)[:, None] * speed
    sine, cosine = angle.sin(), angle.cos()
    first, second = tokens[..., :half], tokens[..., half:]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=3)


class Embedded(nn.Module):
    """Bytes as tokens; other numbers are refused."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(BYTES, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, text: Tensor) -> Float[Tensor, "samples tokens dim"]:
        codes = text.long()
        # A GPU would be waited for.
        if text.device.type == "cpu" and not torch.compiler.is_exporting():
            is_other = (codes < 0) | (codes >= BYTES) | (codes != text)
            if is_other.any():
                raise DataError(
                    f"The samples hold {text[is_other][0].item():.6g}, and bytes are whole numbers "
                    f"from 0 to {BYTES - 1}. Give the bytes of a text, as text.encode() has them."
                )
        found: Tensor = self.table(codes)
        return found


class Patches(nn.Module):
    """Patches of images as tokens, each with what is learned for its position.

    Args:
        channels: Channels of images.
        size: Height and width of images, in pixels.
        patch: Side of a patch.
        dim: Numbers of a token.

    Source:
        Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1.
    """

    def __init__(self, channels: int, size: Sequence[int], patch: int, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)
        places = size[0] // patch * (size[1] // patch)
        self.positions = nn.Parameter(0.02 * torch.randn(places, dim))

    def forward(
        self, images: Float[Tensor, "samples channels height width"]
    ) -> Float[Tensor, "samples tokens dim"]:
        found: Tensor = self.convolution(images).flatten(2).transpose(1, 2)
        return found.contiguous() + self.positions


class TokenMean(nn.Module):
    """The mean of the tokens of a sample."""

    def forward(self, tokens: Float[Tensor, "samples tokens dim"]) -> Float[Tensor, "samples dim"]:
        return tokens.mean(dim=1)


def byte_head(dim: int, rank: int | None) -> nn.Sequential:
    """Return a head that scores bytes, of a matrix or of the product of two narrow ones."""
    widths = (dim, BYTES) if rank is None else (dim, rank, BYTES)
    linear = [nn.Linear(*sizes, bias=False) for sizes in pairwise(widths)]
    return nn.Sequential(nn.LayerNorm(dim), *linear)


class NextByte(Objective):
    """Cross-entropy of the byte that follows each byte of a window.

    Scores are those of the byte that follows the window.

    Args:
        dim: Numbers of a token.
        rank: See `byte_head`.
        is_multi_token: Whether another head, for the training alone, predicts the byte after that.
    """

    metric_names = ("accuracy", "nats")
    test_metric_names = ("accuracy", "nats")
    helpers = ("further",)

    def __init__(self, dim: int, *, rank: int | None, is_multi_token: bool) -> None:
        super().__init__()
        self.head = byte_head(dim, rank)
        self.further = byte_head(dim, rank) if is_multi_token else None
        self._known: tuple[Tensor, Metrics] | None = None
        """Tokens of the last loss, and its metrics, until these have been asked for."""

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Tensor:
        (view,) = outputs.values()
        tokens, following = view.tensor, _following(view)
        logits = _logits(self.head, tokens)
        loss = F.cross_entropy(logits, following.flatten())
        self._known = tokens.detach(), _told(logits.detach(), following.flatten(), loss.detach())
        if self.further is not None:
            logits = _logits(self.further, tokens[:, :-1])
            loss = loss + F.cross_entropy(logits, following[:, 1:].flatten())
        return loss

    def scores(self, outputs: Batch) -> Float[Tensor, "samples classes"]:
        """Return log-probabilities of the byte that follows."""
        return _logits(self.head, outputs.tensor[:, -1:]).log_softmax(dim=1)

    def metrics(self, outputs: Views) -> Metrics:
        """Return how often the next byte was right, and its negative log-probability.

        Both are over all bytes of the windows, the first ones included, which few come before.
        """
        (view,) = outputs.values()
        known, self._known = self._known, None
        if known is not None and known[0].is_set_to(view.tensor):
            return known[1]
        following = _following(view).flatten()
        logits = _logits(self.head, view.tensor)
        return _told(logits, following, F.cross_entropy(logits, following))


def _logits(head: nn.Module, tokens: Tensor) -> Float[Tensor, "places classes"]:
    logits: Tensor = head(tokens).flatten(0, 1)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _following(view: Batch) -> Int[Tensor, "samples tokens"]:
    """Return the byte that follows each byte of windows.

    Raises:
        SettingError: The samples have none.
    """
    if NEXT not in view.targets:
        raise SettingError(
            "The samples do not say which byte follows each of theirs: they need a target "
            f'"{NEXT}". Give text, as a path that ends in .txt.'
        )
    return view.targets[NEXT].long()


def _told(logits: Tensor, following: Tensor, nats: Tensor) -> Metrics:
    number = len(following)
    right = (logits.argmax(dim=1) == following).sum()
    return {"accuracy": (right, number), "nats": (nats * number, number)}
