"""Floating-point operations, counted by torch."""

from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)


def flop_counter() -> FlopCounterMode:
    """Return a counter of what is computed while it is on, attention on processors included.

    Gradients of convolutions in groups are counted as what they take; torch has each filter read
    all channels. As torch has it for other devices, attention counts in full, whether or not it is
    causal.

    Example:
        >>> with flop_counter() as counter:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> counter.get_total_flops()
        48
    """
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten.convolution_backward: _convolution_backward,
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


def _convolution_backward(
    gradient: Any,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: list[bool],
    **others: Any,
) -> int:
    # Each gradient takes as many products as the convolution: those of the input, of the weight.
    return sum(wanted[:2]) * int(conv_flop_count(x, weight, gradient, transposed=transposed))


def _attention(query: Any, key: Any, value: Any, *rest: Any, **others: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **others: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))
