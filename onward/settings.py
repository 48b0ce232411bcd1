"""Settings: dataclasses in which each has one home, a field with its meaning and unit."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from onward.values import NotEmpty, Range, kinds, read_value

Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Counts = Annotated[tuple[Count, ...], NotEmpty()]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


Fill = Literal["zeros", "reflect"]
"""What a shift brings in at the border."""

Standardize = Literal["auto", "feature", "channel", "none"]
"""What gets a mean of 0 and a standard deviation of 1."""

Negatives = Literal["fixed", "random", "adaptive", "hard", "gradual", "nearest", "mixed"]
"""How the wrong label of a negative is chosen, see `NetworkConfig.negatives`."""


class Section:
    """A section of a run; its settings are read by their types when it is made."""

    section: ClassVar[str] = "network"
    """Its name in a run; settings of all recipes are called `network`."""

    layer_sizes: ClassVar[tuple[str, ...]] = ("widths",)
    """Settings that say how large layers are: where they differ, a twin has other layers."""

    @property
    def is_backpropagation(self) -> bool:
        """Whether all layers learn together, so that this is a twin and needs none."""
        return False

    def __post_init__(self) -> None:
        """Refuse values that settings cannot have.

        Raises:
            SettingError: There is one.
        """
        for name, kind in kinds(type(self)).items():
            value = read_value(f"{self.section}.{name}", getattr(self, name), kind)
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """What is learned from."""

    section = "data"

    name: str = "digits"
    """A known data set, or a path: to an .npz, .npy, .csv, .tsv, .parquet or .txt file, or to a
    folder of images by class."""

    label: str | None = None
    """Column of a table that has the classes. Of an .npy file, the .npy file that has them."""

    dir: str | None = None
    """Folder that holds data sets. None: the environment variable ONWARD_DATA, then a cache."""

    validation: NotNegative | Whole = 0.1
    """Training samples held out for validation: a share below 1, or a number of samples; 0 for
    none."""

    test: Annotated[float, Range(0, 1, above=True)] = 0.2
    """Share of the samples held out for the test where the data bring no test samples."""

    split_seed: int = 0
    """Decides which samples are validation and test samples."""

    labelled: Annotated[float, Range(0, 1, above=True)] | None = None
    """Share of the training samples of each class whose labels are kept. The other samples are left
    out, except in stages that learn without labels. None: all."""

    context: Annotated[int, Range(2)] = 128
    """Bytes of a sample of text: a window, which is all that a model of the next byte sees."""

    links: bool = False
    """Whether samples of a graph are pairs of nodes, with an edge or without, and not its nodes."""

    standardize: Standardize = "auto"
    """What gets a mean of 0 and a standard deviation of 1 over the training samples: each feature,
    each channel, or nothing. auto: features of vectors, but not those of nodes of a graph, where
    these differ much in scale or lie far from 0; channels of images that have several."""

    class_weights: Annotated[float, Range(0, 1, above=True)] | Literal["balanced"] | None = None
    """How much training samples count in the loss. balanced: each class counts the same, however
    many samples it has. A power p below 1 is milder: a sample of a class of n samples counts as
    n^-p. Blocks are then trained by autograd."""

    shift: Whole | Literal["auto"] = 0
    """Largest random shift of training images or signals, in pixels, drawn anew for each sample and
    epoch. auto: a sixteenth of the shorter axis, rounded; 2 for CIFAR-10."""

    shift_fill: Fill = "zeros"
    """What a shift brings in at the border: zeros, or the image mirrored there."""

    flip: Literal["none", "random", "alternating", "auto"] = "none"
    """Whether training images are mirrored left to right. random: a coin is tossed for each sample
    and epoch. alternating: each sample turns with every epoch, from a direction that its id
    decides. auto: alternating for images of three channels, which are mostly photographs, and none
    for others."""

    cutout: Whole = 0
    """Side in pixels of a square of zeros, at a random place of each training image; 0: none."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Section):
    """What is trained: blocks of one dense layer, and how classes are read off them."""

    widths: Counts = (500, 500, 500, 500)
    """Units of each block; the input width comes from the data."""

    objective: Literal["cross-entropy", "threshold"] = "cross-entropy"
    """Local objective of each block."""

    layers_per_block: Literal[1, "all"] = 1
    """Layers that learn together. all: one block, which is backpropagation, to compare with."""

    readout: Literal["heads", "goodness", "softmax"] = "heads"
    """How classes are read off: the blocks' own heads, a goodness sweep over all labels, or one
    softmax head on the neutral label."""

    heads: Literal["all", "last"] = "all"
    """Which heads are added up, for the readout `heads`."""

    skip_first: bool = True
    """Whether goodness and softmax readouts leave the first block out (if there are others)."""

    negatives: Negatives | None = None
    """How the wrong label of a negative is chosen. fixed: uniformly, once for the run; random:
    uniformly, anew each time; adaptive: the most likely one, by what the network says; hard: drawn
    in proportion to what it says; gradual: adaptive as often as it is right, random otherwise;
    nearest: that of the sample of another class with the nearest inputs, among 500 drawn at random;
    mixed: random, with samples and labels mixed two by two. None for objectives without
    negatives."""

    label_strength: Positive | None = None
    """Input value of an embedded label. None: 1; for images of several channels a tenth of the
    square root of the number of inputs, which is 5.5 for CIFAR-10."""

    threshold: NotNegative = 1.0
    """Mean square of the activities at which a sample is a coin toss between positive and
    negative."""

    slope: Positive | None = None
    """Steepness of the threshold, per mean square. None: the number of units, as
    Hinton's code has it."""

    peer: NotNegative = 0.0
    """Strength of peer normalisation; 0 turns it off."""

    dropout: Share = 0.0
    """Share of each block's inputs that is dropped in training."""

    gain: Positive = 1.0
    """Standard deviation of the first weights, times the square root of the number of inputs."""

    @property
    def is_backpropagation(self) -> bool:
        """Whether all layers learn together."""
        return self.layers_per_block == "all"

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        found: dict[str, str] = {}
        if self.objective == "cross-entropy":
            reason = "it is for the objective threshold"
            found |= dict.fromkeys(("threshold", "slope", "peer"), reason)
        if self.negatives is None:
            reason = "no label is written into the input (network.negatives)"
            found |= dict.fromkeys(("label_strength", "skip_first"), reason)
        if self.readout != "heads":
            found["heads"] = f"it is for the readout heads, and the readout is {self.readout}"
        return found


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """How the weights follow their gradients."""

    section = "optimizer"

    name: Literal["adam", "sgd"] = "adam"
    """Update rule; both have decoupled weight decay, and sgd averages the gradient. Recipes for
    graphs have adam add the decay to the gradient, as their paper does."""

    lr: Positive = 1e-3
    """Learning rate of the blocks."""

    weight_decay: NotNegative = 0.0
    """Decay of the blocks' weights per step, times the learning rate."""

    head_lr: Positive = 1e-3
    """Learning rate of a softmax head that reads several blocks."""

    head_weight_decay: NotNegative = 0.0
    """Decay of that head's weights per step, times its learning rate."""

    momentum: Share = 0.9
    """Decay of the mean gradient, for sgd."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section):
    """How long, in what steps, and with which arithmetic."""

    section = "training"

    epochs: Count = 10
    """Passes of each block over the training samples, or over those of the shard it visits."""

    batch_size: Count = 100
    """Samples of a mini-batch."""

    drop_last: bool = False
    """Whether the last mini-batch of an epoch is left out where it has fewer samples."""

    seed: Annotated[int, Range(-(1 << 63), 1 << 63)] = 0
    """Decides the first weights, the order of samples, negatives, augmentation and dropout."""

    init: str | None = None
    """Folder of a finished run, or a model file, whose weights are the first ones; its network was
    built by the same recipe with the same settings. None: they are drawn."""

    schedule: Literal["constant", "warmup", "cosine", "one-cycle", "cooldown"] = "constant"
    """Learning rate over time. warmup: up for 5 %, flat to 30 %, then down to 0 in a line.
    cosine: down to 1/1000 along half a cosine. one-cycle: up from 1/25 over 30 %, then down to 0,
    along cosines. cooldown: flat for half of the epochs, then down in a line, as in Hinton's
    code."""

    device: Literal["cpu", "cuda", "auto", "mps"] = "cpu"
    """What blocks compute on; rounding and draws depend on it. cuda: a GPU of NVIDIA's, one per
    rank where there are enough. auto: cuda where torch finds one, else cpu; the choice is written
    into the run folder. mps: a GPU of Apple's, experimental and untested."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Matrix products in fp32, or in bf16 with fp32 weights. auto: bf16 where the device has
    instructions for it; the choice is written into the run folder."""

    gradients: Literal["closed-form", "shared-pass", "autograd"] = "closed-form"
    """How derivatives are found where several ways are known; equal up to rounding. shared-pass:
    in closed form, and in the first block what positives and negatives have in common, which is
    all but the label, is multiplied once; without dropout and slices."""

    threads: Annotated[int, Range(1, 1025)] = 1
    """Threads of each rank. Rounding depends on it."""


Monitor = Literal["accuracy", "roc-auc"]
"""What is compared of validations."""

Cut = Literal["samples", "units"]
"""What a slice is a part of: the samples of a mini-batch, or the units of a block."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Section):
    """What is computed, and from what: this decides the weights."""

    section = "plan"

    kind: Literal["chapters", "stream"] = "chapters"
    """Blocks take turns of a chapter, or all learn from every mini-batch."""

    chapters: Count | None = None
    """Turns of each block (S); with stream, how often is reported. None: one per epoch."""

    hint_age: Whole | Literal["never"] | None = None
    """Age of the class scores that draw adaptive, hard and gradual negatives: in chapters, or
    in mini-batches with stream. None: the number of blocks in a chapter plan, 0 with stream,
    the number of shards where there are several."""

    optimizer_state: str = "travel"
    """Optimizer state at the start of a chapter: travel (that of the chapter before), restart
    (none), or aged:N (that of N chapters ago)."""

    shards: Count = 1
    """Parts of the training samples; chapter c learns from part c modulo this number."""

    shard_by: Literal["iid", "class", "dirichlet"] = "iid"
    """How samples are assigned to shards. iid: at random. class: each shard gets few classes.
    dirichlet: each class is divided in proportions drawn from a Dirichlet distribution."""

    shard_alpha: Positive = 0.5
    """Concentration of that distribution: the smaller, the fewer shards share a class."""

    slices: Count = 1
    """Parts of every mini-batch in which a block is trained, which as many ranks can share."""

    cut: Cut = "samples"
    """What a slice is a part of: the samples of the mini-batch (gradients are summed), or the units
    of the block (only class scores or goodness are)."""

    validate_every: Count | None = None
    """Chapters between validations. None: 1 where a validation takes less than 5 % of the
    operations of a chapter, or where it decides something (`patience`, `keep_best`), else after
    the last only."""

    patience: Count | None = None
    """Early stopping: training ends after this many validations in a row without a higher accuracy
    than before. None: all epochs are trained."""

    stop_age: Count = 1
    """Chapters from the validation that ends training to the first that is not trained. With
    several ranks under all-layers, a value below the number of ranks makes them wait for each
    validation."""

    monitor: Monitor = "accuracy"
    """What is compared where validations decide something: the accuracy, or the area under the ROC
    curve, of two classes."""

    keep_best: bool = False
    """Whether the run ends with the weights of the chapter that validated best, and not with the
    last ones."""

    block_patience: Count | None = None
    """Early stopping of each block by itself, within a chapter: it ends after this many validations
    in a row without a higher accuracy of the network up to it, and keeps its best weights. For few
    chapters, in which blocks learn to their end. None: blocks learn for all epochs."""

    block_validate_every: Count = 1
    """Epochs between those validations."""

    memory_format: Literal["auto", "contiguous", "channels-last"] = "auto"
    """How images and filters lie in memory, on which rounding depends. auto: channels last where
    there are convolutions of images, which is faster, else contiguous."""

    wire: Literal["bf16"] | None = None
    """Type to which the activities are rounded that blocks hand on in a stream plan, wherever
    they run. None: as they come out of the block, which is bf16 where the products are."""

    @property
    def is_judged(self) -> bool:
        """Whether validations decide where training ends, or whose weights are kept."""
        return self.patience is not None or self.keep_best

    @property
    def usual_placement(self) -> str:
        """The placement of several ranks that name none."""
        if self.kind == "stream":
            return "stream"
        return "federated" if self.shards > 1 else "all-layers"


@dataclass(frozen=True, kw_only=True)
class PlacementConfig(Section):
    """Where tasks run: this decides time and traffic, never the weights."""

    section = "placement"

    name: Literal["sequential", "single-layer", "all-layers", "federated", "stream"] | None = None
    """None: sequential on one rank, else all-layers, federated (several shards) or stream."""

    processes: Count = 1
    """Processes to start on this machine; under torchrun their number is that of torchrun."""

    replicas: Count | None = None
    """Ranks that share each task, of a plan with as many slices or a multiple. None: one; under
    single-layer with slices and more ranks than blocks, more ranks for more expensive blocks."""

    iface: str | None = None
    """Network interface between machines. None: loopback on one machine, else gloo's choice."""

    restarts: int = 3
    """How often all `processes` are started again after one was killed."""

    peer_timeout: float = 600.0
    """Seconds without a word after which a rank that others wait for counts as gone."""

    memory: Positive | None = None
    """Gigabytes of outputs of frozen blocks that a rank may hold in memory for a chapter; more go
    to a file, or are computed again. None: half of what is free, divided by the machine's ranks."""

    checkpoint_every: Count | None = None
    """Checkpoint interval, in chapters. None: an epoch."""

    keep_state: bool = False
    """Whether a finished run keeps its last states, to be trained for more epochs; with Adam they
    are about six times as large as the model."""

    directory: str | None = None
    """Folder that all ranks share and exchange block states through, as files, instead of over a
    network; for chapter plans."""
