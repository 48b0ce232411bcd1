"""Train neural networks layer by layer, with objectives local to each layer."""

from typing import TYPE_CHECKING

from onward.names import on_demand
from onward.version import VERSION as __version__

if TYPE_CHECKING:
    from onward import data, exits
    from onward.augmentation import Cutout, Flip, Translate
    from onward.batch import Batch
    from onward.blocks import Block, Edge
    from onward.checkpoint import load, save
    from onward.comparison import compare
    from onward.config import RunConfig
    from onward.data import DataInfo, Dataset, graph, graph_links
    from onward.data import from_arrays as dataset
    from onward.data import load as load_data
    from onward.data.graph_tables import graph_tables, graphs
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
    from onward.figures import Comparison
    from onward.inference import answer, calibrate, evaluate, export
    from onward.layers import Dense, ReadoutLayer, normalize_length
    from onward.listeners import CSVLog, TensorBoard
    from onward.networks import Network
    from onward.objectives import CrossEntropy, Objective, Threshold
    from onward.optimizers import SGD, Adam, Optimizer, optimizer
    from onward.placement import Placement
    from onward.preprocessing import Preprocessing, Whitening
    from onward.progress import Bars
    from onward.readouts import Fold, GoodnessSweep, Readout, Scores, SoftmaxHead, SumOfHeads
    from onward.recipes.catalog import RECIPES
    from onward.recipes.mlp import mlp
    from onward.recipes.recipe import Recipe, recipe
    from onward.recipes.user import load_recipe
    from onward.results import Listener, Progress, Result
    from onward.samplers import LabelEmbedding, Plain, Sampler, Views
    from onward.sampling import Sampled, sample
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
else:
    __getattr__, __dir__ = on_demand(
        __name__,
        {
            "onward": ("data", "exits"),
            "onward.augmentation": ("Cutout", "Flip", "Translate"),
            "onward.batch": ("Batch",),
            "onward.blocks": ("Block", "Edge"),
            "onward.checkpoint": ("load", "save"),
            "onward.comparison": ("compare",),
            "onward.config": ("RunConfig",),
            "onward.data": (
                "DataInfo",
                "Dataset",
                "graph",
                "graph_links",
                "from_arrays as dataset",
                "load as load_data",
            ),
            "onward.data.graph_tables": ("graph_tables", "graphs"),
            "onward.errors": (
                "DataError",
                "DivergedError",
                "FileError",
                "OnwardError",
                "OnwardWarning",
                "PlacementError",
                "SettingError",
            ),
            "onward.evaluation": ("Evaluation",),
            "onward.exits": ("Answers", "Calibrated", "ExitPolicy"),
            "onward.figures": ("Comparison",),
            "onward.inference": ("answer", "calibrate", "evaluate", "export"),
            "onward.listeners": ("CSVLog", "TensorBoard"),
            "onward.progress": ("Bars",),
            "onward.layers": ("Dense", "ReadoutLayer", "normalize_length"),
            "onward.networks": ("Network",),
            "onward.objectives": ("CrossEntropy", "Objective", "Threshold"),
            "onward.optimizers": ("SGD", "Adam", "Optimizer", "optimizer"),
            "onward.placement": ("Placement",),
            "onward.preprocessing": ("Preprocessing", "Whitening"),
            "onward.readouts": (
                "Fold",
                "GoodnessSweep",
                "Readout",
                "Scores",
                "SoftmaxHead",
                "SumOfHeads",
            ),
            "onward.recipes.catalog": ("RECIPES",),
            "onward.recipes.mlp": ("mlp",),
            "onward.recipes.recipe": ("Recipe", "recipe"),
            "onward.recipes.user": ("load_recipe",),
            "onward.results": ("Listener", "Progress", "Result"),
            "onward.samplers": ("LabelEmbedding", "Plain", "Sampler", "Views"),
            "onward.sampling": ("Sampled", "sample"),
            "onward.settings": (
                "DataConfig",
                "NetworkConfig",
                "OptimizerConfig",
                "PlacementConfig",
                "PlanConfig",
                "TrainingConfig",
            ),
            "onward.stages": ("Stage",),
            "onward.training": ("run", "train"),
        },
    )

__all__ = [
    "__version__",
    "Adam",
    "answer",
    "Answers",
    "Bars",
    "Batch",
    "Block",
    "calibrate",
    "Calibrated",
    "compare",
    "Comparison",
    "CrossEntropy",
    "CSVLog",
    "Cutout",
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
    "Flip",
    "Fold",
    "GoodnessSweep",
    "graph",
    "graph_links",
    "graph_tables",
    "graphs",
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
    "sample",
    "Sampled",
    "Sampler",
    "save",
    "Scores",
    "SettingError",
    "SGD",
    "SoftmaxHead",
    "Stage",
    "SumOfHeads",
    "TensorBoard",
    "Threshold",
    "train",
    "TrainingConfig",
    "Translate",
    "Views",
    "Whitening",
]
