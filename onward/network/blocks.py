"""The block: layers, a local objective and an optimizer; the unit of placement."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from onward.arguments import check_arguments
from onward.batch import Batch, Tensors, laid_out, mapped, named, parts
from onward.errors import SettingError, name_of
from onward.network.objectives import Objective
from onward.network.optimizers import Optimizer, OptimizerState, Schedule, lr_scale


@dataclass(frozen=True, slots=True)
class Edge:
    """What a block reads: the output of a block, or the inputs of the batch.

    Example:
        >>> Edge(3, delay=1).key, Edge("input").key
        ('3', 'input')
    """

    source: int | Literal["input"]
    """Number of a block, or the batch's own inputs."""

    delay: Literal[0, 1] = 0
    """0: the output of this visit. 1: that of the previous visit to the same samples: the previous
    tick or, if one mini-batch is the whole training set, the previous epoch; zeros at the first.
    Inference makes as many visits as the network has ticks, and has no previous epoch."""

    to: Literal["module", "objective"] = "module"
    """Who reads it: the module, or the objective alone (as `batch.context`)."""

    name: str | None = None
    """What it is called among several; None: by its source."""

    shape: tuple[int, ...] | None = None
    """Required with a delay: shape of one sample, for the zeros of the first visit."""

    def __post_init__(self) -> None:
        check_arguments(Edge, {"source": self.source})
        if self.delay not in (0, 1) or self.to not in ("module", "objective"):
            raise SettingError(
                f"An edge has a delay of 0 or 1 and leads to module or objective; got "
                f"delay={self.delay!r}, to={self.to!r}."
            )

    @property
    def key(self) -> str:
        """What it is called among several."""
        return self.name or str(self.source)

    def zeros(self, like: Batch) -> Tensor:
        """Return what a delayed edge brings some samples before the first visit."""
        assert self.shape is not None
        return torch.zeros(len(like), *self.shape, device=like.device)


Choice = Callable[[str, nn.Parameter], bool]
"""Says of a parameter, by its name, whether an optimizer is for it."""

Reads = tuple[int | Literal["input"] | Edge, ...]
"""What a block reads; a number stands for the output of that block."""


class Block(nn.Module):
    """One or more layers that learn from an objective of their own.

    A block hands on detached outputs; no gradient flows into the block before it. With many
    layers inside, those learn together by backpropagation: a whole network in one block is ordinary
    backpropagation.

    Args:
        module: Any module that maps a tensor, or a dict of tensors, to a tensor or a dict of
            tensors, whose first dimension is that of the samples.
        objective: What the block learns; its parameters are trained along with the module's.
        optimizer: How parameters follow their gradients. Or several, by what they update: the name
            of a module or a parameter (`"module.0"`, `"objective"`, `""` for all), which covers
            all inside it, or a function of name and parameter; the first that matches counts. None:
            the block is frozen. Samples pass
            through it in eval mode, and training leaves it as it is; its objective is asked for
            scores alone, where a readout wants some.
        reads: What the block reads. None for the usual way: the block before, or the input. One
            that reads several gets them by name.
        schedule: Learning rate over time, instead of that of the training: a name, see
            `TrainingConfig.schedule`, or a function from the share of the epochs that is done, up
            to 1, to a factor on the learning rate.
        structure: Members of the batch's structure that the module, or `prepare` if there is one,
            takes as keyword arguments.
        prepare: Computed once per view, for what does not depend on weights: maps the inputs, and
            members of the structure as keywords, to the inputs of the module.
        clip: Largest norm of the gradient of all parameters together, as in
            `torch.nn.utils.clip_grad_norm_`. None: no clipping.

    Example:
        >>> import onward as ow
        >>> block = ow.Block(
        ...     nn.Linear(4, 8), ow.CrossEntropy(nn.Linear(8, 3, bias=False)), ow.Adam(lr=0.01)
        ... )
        >>> block.infer(ow.Batch(torch.zeros(2, 4))).tensor.shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        optimizer: Optimizer | Mapping[str | Choice, Optimizer] | None,
        *,
        reads: Reads | None = None,
        schedule: Schedule | None = None,
        structure: tuple[str, ...] = (),
        prepare: Callable[..., Tensors] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        check_arguments(Block.__init__, locals())
        if clip is not None and not clip > 0:
            raise SettingError(f"clip is a norm of the gradient above 0; got {clip}.")
        self.module = module
        self.objective = objective
        unknown = [n for n, t in chain(self.named_parameters(), self.named_buffers()) if is_lazy(t)]
        if unknown:
            raise SettingError(
                f"{unknown[0]} has no shape until its layer (such as nn.LazyLinear) has seen a "
                f"sample. Call the layers once on a sample before you give them to ow.Block."
            )
        self.reads = reads
        self.schedule = schedule
        if schedule is not None:
            try:
                lr_scale(schedule, 0, 1.0, 1)
            except TypeError as error:
                raise SettingError(
                    f"The schedule {name_of(schedule)} takes the share of the training that is "
                    f"done, and returns a factor on the learning rate: {error}."
                ) from error
        self.structure = structure
        self.prepare = prepare
        self.clip = clip
        self.precision = torch.float32
        self.memory_format = torch.contiguous_format
        self.optimizer_state: dict[str, OptimizerState] = {}
        self.optimizer = optimizer

    @property
    def optimizer(self) -> Optimizer | Mapping[str | Choice, Optimizer] | None:
        """How parameters follow their gradients; another one starts from its first state."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer | Mapping[str | Choice, Optimizer] | None) -> None:
        check_arguments(Block.__init__, {"optimizer": optimizer})
        self._optimizer, self.rules = optimizer, {}
        if optimizer is not None:
            rules: Mapping[str | Choice, Optimizer]
            rules = optimizer if isinstance(optimizer, Mapping) else {"": optimizer}
            self.rules = _rules(rules, dict(self.named_parameters()))
        self.reset_optimizer()

    @property
    def is_frozen(self) -> bool:
        """Whether the block has no optimizer, and so learns nothing."""
        return self._optimizer is None

    def forward(self, batch: Batch) -> Tensors:
        """Return what the module makes of a prepared batch, for training or not, as it was set.

        Raises:
            SettingError: The module changed its input, which others still read, or puts out
                something else than tensors, or another number of samples.
        """
        # Tensors of torch.inference_mode do not count their changes.
        counted = [part for part in parts(batch.inputs) if not part.is_inference()]
        versions = [part._version for part in counted]
        # `prepare` has made of the structure what the module needs.
        structure = self._structure(batch) if self.prepare is None else {}
        outputs: Tensors = self.module(batch.inputs, **structure)
        if [part._version for part in counted] != versions:
            raise SettingError(
                f"The module {type(self.module).__name__} changes its input in place, which other "
                f"blocks and later epochs read too. Let its first operation make a new tensor "
                f"(inplace=False)."
            )
        each = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
        if not each or not all(isinstance(tensor, Tensor) for tensor in each):
            raise SettingError(
                f"The module {type(self.module).__name__} puts out a {type(outputs).__name__}; a "
                f"block hands on a tensor, or a dict of tensors by name."
            )
        samples = parts(batch.inputs)[0].shape[:1]
        odd = [tensor for tensor in each if tensor.shape[:1] != samples]
        if odd:
            raise SettingError(
                f"The module {type(self.module).__name__} puts out shape {tuple(odd[0].shape)} for "
                f"{samples[0]} samples. The first dimension must be that of the samples, which a "
                f"module neither drops nor joins."
            )
        return outputs

    def _structure(self, batch: Batch) -> dict[str, Tensor]:
        lacking = [name for name in self.structure if name not in batch.structure]
        if lacking:
            raise SettingError(
                f"A block needs {', '.join(lacking)} of the structure of the samples, which have "
                f"{', '.join(batch.structure) or 'none'}."
            )
        return {name: batch.structure[name] for name in self.structure}

    def prepared(self, batch: Batch) -> Batch:
        """Return a batch as the module gets it, with all done that does not depend on weights."""
        if self.prepare is not None:
            with torch.no_grad():
                prepared = self.prepare(batch.inputs, **self._structure(batch))
            batch = batch.replace(inputs=prepared)
        if self.memory_format is torch.contiguous_format:
            return batch
        return batch.replace(
            inputs=mapped(self._laid_out, batch.inputs),
            context={name: self._laid_out(tensor) for name, tensor in batch.context.items()},
        )

    def _laid_out(self, tensor: Tensor) -> Tensor:
        return laid_out(tensor, self.memory_format)

    def set_memory_format(self, memory_format: torch.memory_format) -> None:
        """Choose how images lie in memory, and lay out filters and optimizer state so."""
        self.memory_format = memory_format
        for state in self.optimizer_state.values():
            state |= {part: self._laid_out(t) for part, t in state.items() if t.ndim == 4}
        if not self.is_released:
            for tensor in self.weights():
                if tensor.ndim == 4:
                    tensor.data = self._laid_out(tensor.detach())

    def layouts(self) -> list[Tensor]:
        """Return tensors in no memory that lie as the weights do, or will where they are released.

        In the order of `weights`.
        """
        return [self._layout(tensor) for tensor in self.weights()]

    def _layout(self, tensor: Tensor) -> Tensor:
        layout = tensor.detach().to("meta")
        return layout if any(tensor.stride()) else self._laid_out(layout)

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that learn, by name; frozen ones are left out."""
        if self.is_frozen:
            return iter(())
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def reset_optimizer(self) -> None:
        """Put the optimizer back to its state before the first step.

        Until a step begins, that state is shapes in no memory.
        """
        self.optimizer_state = {
            name: {
                part: tensor.to("meta")
                for part, tensor in self.rules[name].init(self._layout(p)).items()
            }
            for name, p in self.trained()
        }

    def init_optimizer(self) -> None:
        """Have the optimizer's state, that before the first step where there is none."""
        state = self.optimizer_state
        if any(tensor.is_meta for parts in state.values() for tensor in parts.values()):
            self.optimizer_state = {
                name: self.rules[name].init(p.detach()) for name, p in self.trained()
            }

    def optimizer_tensors(self) -> list[Tensor]:
        """Return the optimizer's state, by the names of parameters and of its parts in order."""
        state = self.optimizer_state
        return [state[name][part] for name in sorted(state) for part in sorted(state[name])]

    def set_optimizer_tensors(self, tensors: list[Tensor]) -> None:
        """Give the optimizer its state, in the order of `optimizer_tensors`."""
        rest = iter(tensors)
        self.optimizer_state = {
            name: self.rules[name].placed(
                {part: next(rest) for part in sorted(self.optimizer_state[name])}, self.device
            )
            for name in sorted(self.optimizer_state)
        }

    def weights(self) -> list[Tensor]:
        """Return parameters and buffers themselves, in order of their names."""
        return [tensor for _, tensor in sorted(self.state_dict(keep_vars=True).items())]

    @property
    def is_released(self) -> bool:
        """Whether the weights are in no memory, see `release`."""
        arrays = [t for t in self.state_dict().values() if t.numel() > 1]
        return bool(arrays) and not any(any(t.stride()) for t in arrays)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights and buffers."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def release(self) -> None:
        """Let go of weights that come from elsewhere before they are needed: NaN, in no memory."""
        # First, while the weights have strides that the optimizer's state follows.
        self.reset_optimizer()
        for tensor in self.state_dict(keep_vars=True).values():
            nothing = math.nan if tensor.is_floating_point() else 0
            tensor.data = tensor.detach().new_full((), nothing).expand(tensor.shape)

    @property
    def device(self) -> torch.device:
        """What the block computes on: where its weights lie, if it has some."""
        return device_of(self)

    def autocast(self) -> torch.autocast:
        """Return the context in which the block computes: bf16 products where it is set so."""
        is_bf16 = self.precision is torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16)

    @torch.no_grad()
    def infer(self, batch: Batch) -> Batch:
        """Pass samples through without training: running statistics and weights stay as they are.

        Args:
            batch: What the block reads, not prepared yet.

        Returns:
            The same batch with what the block puts out as its inputs.
        """
        self.eval()
        with self.autocast():
            return batch.replace(inputs=self(self.prepared(batch)), context={})

    @torch.no_grad()
    def scores(self, outputs: Batch) -> Tensor:
        """Return the objective's scores: a row of class scores, or one goodness, a sample."""
        self.eval()
        with self.autocast():
            scores: Tensor = self.objective.scores(outputs)
        return scores

    def shipped(self) -> dict[str, Tensor]:
        """Return what inference needs, by name: weights, buffers, and the head if there is one."""
        ships = {f"objective.{name}" for name in self.objective.shipped()}
        state = self.state_dict()
        return {n: t for n, t in state.items() if not n.startswith("objective.") or n in ships}


def device_of(module: nn.Module) -> torch.device:
    """Return where the weights of a module lie; the processor, where there are none."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _rules(
    rules: Mapping[str | Choice, Optimizer], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Optimizer]:
    """Return the rule of each parameter.

    Raises:
        SettingError: One is for no parameter, or a parameter that learns has none.
    """
    for chosen in rules:
        fits = [name for name, p in parameters.items() if _is_chosen(chosen, name, p)]
        if not fits and chosen != "":
            raise SettingError(
                f"The optimizer for {_chosen_by(chosen)} is for no parameter of the block, "
                f"which has {', '.join(parameters)}."
            )
    found: dict[str, Optimizer] = {}
    for name, parameter in parameters.items():
        own = [rule for chosen, rule in rules.items() if _is_chosen(chosen, name, parameter)]
        if not own and not parameter.requires_grad:
            continue
        if not own:
            raise SettingError(
                f"No optimizer is given for the parameter {name}: those given are for "
                f"{', '.join(map(_chosen_by, rules))}. Give one for the rest by the name ''."
            )
        found[name] = own[0]
    return found


def _chosen_by(chosen: str | Choice) -> str:
    return repr(chosen) if isinstance(chosen, str) else name_of(chosen)


def _is_chosen(chosen: str | Choice, name: str, parameter: nn.Parameter) -> bool:
    if isinstance(chosen, str):
        return is_inside(name, (chosen,))
    return chosen(name, parameter)


def is_inside(name: str, prefixes: tuple[str, ...]) -> bool:
    """Return whether a parameter is one of these, or belongs to a module that is."""
    return any(prefix in ("", name) or name.startswith(f"{prefix}.") for prefix in prefixes)


def gathered(reads: list[tuple[Edge, Tensors]], like: Batch) -> Batch:
    """Return what a block reads as one batch: one tensor as it is, several by name.

    Args:
        reads: Each edge, and what came over it.
        like: A batch of the same samples, for their targets and so on.
    """
    to_module = [(edge, tensors) for edge, tensors in reads if edge.to == "module"]
    context: dict[str, Tensor] = {}
    for edge, tensors in reads:
        if edge.to == "objective":
            context |= named(tensors, edge.key)
    if len(to_module) == 1:
        return like.replace(inputs=to_module[0][1], context=context)
    inputs: dict[str, Tensor] = {}
    for edge, tensors in to_module:
        inputs |= named(tensors, edge.key)
    return like.replace(inputs=inputs, context=context)
