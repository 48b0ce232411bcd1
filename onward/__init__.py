"""Train neural networks layer by layer, with objectives local to each layer."""

from onward import data, exits
from onward.batch import Batch
from onward.blocks import Block, Edge
from onward.checkpoint import load, save
from onward.config import RunConfig
from onward.data import DataInfo, Dataset
from onward.data import from_arrays as dataset
from onward.data import load as load_data
from onward.errors import (
    DataError,
    DivergedError,
    FileError,
    OnwardError,
    OnwardWarning,
    PlacementError,
    SettingError,
)
from onward.evaluation import Evaluation
from onward.exits import Answers, Calibrated, ExitPolicy
from onward.inference import answer, calibrate, evaluate, export
from onward.layers import Dense, ReadoutLayer, normalize_length
from onward.networks import Network
from onward.objectives import CrossEntropy, Objective, Threshold
from onward.optimizers import SGD, Adam, Optimizer, optimizer
from onward.placement import Placement
from onward.preprocessing import Preprocessing
from onward.readouts import Fold, GoodnessSweep, Readout, Scores, SoftmaxHead, SumOfHeads
from onward.recipes import RECIPES, Recipe, mlp, recipe
from onward.recipes.user import load_recipe
from onward.results import Listener, Progress, Result
from onward.samplers import LabelEmbedding, Plain, Sampler, Views
from onward.settings import (
    DataConfig,
    NetworkConfig,
    OptimizerConfig,
    PlacementConfig,
    PlanConfig,
    TrainingConfig,
)
from onward.stages import Stage
from onward.training import run, train
from onward.version import VERSION as __version__

__all__ = [
    "__version__",
    "Adam",
    "answer",
    "Answers",
    "Batch",
    "Block",
    "calibrate",
    "Calibrated",
    "CrossEntropy",
    "data",
    "DataConfig",
    "DataError",
    "DataInfo",
    "dataset",
    "Dataset",
    "Dense",
    "DivergedError",
    "Edge",
    "evaluate",
    "Evaluation",
    "ExitPolicy",
    "exits",
    "export",
    "FileError",
    "Fold",
    "GoodnessSweep",
    "LabelEmbedding",
    "Listener",
    "load",
    "load_data",
    "load_recipe",
    "mlp",
    "Network",
    "NetworkConfig",
    "normalize_length",
    "Objective",
    "OnwardError",
    "OnwardWarning",
    "optimizer",
    "Optimizer",
    "OptimizerConfig",
    "Placement",
    "PlacementConfig",
    "PlacementError",
    "Plain",
    "PlanConfig",
    "Preprocessing",
    "Progress",
    "Readout",
    "ReadoutLayer",
    "recipe",
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
    "Stage",
    "SumOfHeads",
    "Threshold",
    "train",
    "TrainingConfig",
    "Views",
]
