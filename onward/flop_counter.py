"""Floating-point operations, counted by the formulas of torch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    conv_flop_count,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    shape_wrapper,
)


class FlopCounter(TorchDispatchMode):
    """Counts what is computed while it is on, as `torch.utils.flop_counter.FlopCounterMode` does.

    That one makes torch import its compiler, which takes seconds, and knows no attention on
    processors; this one cannot count operators of operators, such as `torch.cond`. Gradients of
    convolutions in groups are counted as what they take; torch has each filter read all channels.
    As torch has it for other devices, attention counts in full, whether or not it is causal.

    Example:
        >>> with FlopCounter() as counter:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> counter.total
        48
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        """Operations so far; a multiplication and an addition are two."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # Where torch asks for it, it imports its compiler.

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        formula = FORMULAS.get(func.overloadpacket)
        if formula is None:
            with self:
                outputs = func.decompose(*args, **named)
            if outputs is not NotImplemented:
                return outputs
        outputs = func(*args, **named)
        if formula is not None:
            self.total += formula(*args, **named, out_val=outputs)
        return outputs


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


_aten = torch.ops.aten
FORMULAS: dict[Any, Any] = flop_registry | {
    _aten.convolution_backward: shape_wrapper(_convolution_backward),
    _aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_attention_backward),
}
"""Operations of a call, by the function that is called."""
