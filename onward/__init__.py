"""Train neural networks layer by layer, with objectives local to each layer."""

from onward import data, exits
from onward.blocks import Block
from onward.checkpoint import load, save
from onward.config import (
    DataConfig,
    NetworkConfig,
    OptimizerConfig,
    PlacementConfig,
    PlanConfig,
    RunConfig,
    TrainingConfig,
)
from onward.data import Dataset
from onward.data import from_arrays as dataset
from onward.data import load as load_data
from onward.errors import (
    DataError,
    DivergedError,
    FileError,
    OnwardError,
    PlacementError,
    SettingError,
)
from onward.exits import Answers, Calibrated, ExitPolicy, answer, calibrate
from onward.layers import Dense, ReadoutLayer, normalize_length
from onward.networks import Evaluation, Network, evaluate, mlp
from onward.objectives import CrossEntropy, Objective, Threshold
from onward.optimizers import SGD, Adam, Optimizer
from onward.readouts import GoodnessSweep, Readout, Scores, SoftmaxHead, SumOfHeads
from onward.recipes import RECIPES, Recipe
from onward.results import Listener, Progress, Result
from onward.training import run, train
from onward.version import VERSION as __version__
from onward.views import LabelEmbedding, Negatives, Plain, Sampler, View

__all__ = [
    "__version__",
    "Adam",
    "answer",
    "Answers",
    "Block",
    "calibrate",
    "Calibrated",
    "CrossEntropy",
    "data",
    "DataConfig",
    "DataError",
    "Dataset",
    "dataset",
    "Dense",
    "DivergedError",
    "evaluate",
    "Evaluation",
    "ExitPolicy",
    "exits",
    "FileError",
    "GoodnessSweep",
    "LabelEmbedding",
    "Listener",
    "load",
    "load_data",
    "mlp",
    "Negatives",
    "Network",
    "NetworkConfig",
    "normalize_length",
    "Objective",
    "OnwardError",
    "Optimizer",
    "OptimizerConfig",
    "PlacementConfig",
    "PlacementError",
    "Plain",
    "PlanConfig",
    "Progress",
    "Readout",
    "ReadoutLayer",
    "Recipe",
    "RECIPES",
    "Result",
    "run",
    "RunConfig",
    "Sampler",
    "save",
    "Scores",
    "SettingError",
    "SGD",
    "SoftmaxHead",
    "SumOfHeads",
    "Threshold",
    "train",
    "TrainingConfig",
    "View",
]
