"""Train neural networks layer by layer, with objectives local to each layer."""

import os
from typing import TYPE_CHECKING

from onward.names import on_demand
from onward.version import VERSION as __version__

# Products on a GPU are then the same each time. It is read at the first of them.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if TYPE_CHECKING:
    from onward import data, exits
    from onward.batch import Batch
    from onward.checkpoint import load, save
    from onward.comparison.contests import compare
    from onward.comparison.figures import Comparison
    from onward.config import RunConfig
    from onward.data import DataInfo, Dataset, graph, graph_links
    from onward.data import from_arrays as dataset
    from onward.data import load as load_data
    from onward.data.augmentation import Cutout, Flip, Translate
    from onward.data.graph_tables import graph_tables, graphs
    from onward.data.preprocessing import Preprocessing, Whitening
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
    from onward.network.blocks import Block, Edge
    from onward.network.layers import Dense, ReadoutLayer, normalize_length
    from onward.network.networks import Network
    from onward.network.objectives import CrossEntropy, Objective, Threshold
    from onward.network.optimizers import SGD, Adam, Optimizer, optimizer
    from onward.network.readouts import (
        Fold,
        GoodnessSweep,
        Readout,
        Scores,
        SoftmaxHead,
        SumOfHeads,
    )
    from onward.network.samplers import LabelEmbedding, Plain, Sampler, Views
    from onward.network.stages import Stage
    from onward.placement import Placement
    from onward.recipes.catalog import RECIPES
    from onward.recipes.mlp import mlp
    from onward.recipes.recipe import Recipe, recipe
    from onward.recipes.user import load_recipe
    from onward.runs.listeners import CSVLog, TensorBoard
    from onward.runs.progress import Bars
    from onward.runs.results import Listener, Progress, Result
    from onward.runs.training import run, train
    from onward.sampling import Sampled, sample
    from onward.settings import (
        DataConfig,
        NetworkConfig,
        OptimizerConfig,
        PlacementConfig,
        PlanConfig,
        TrainingConfig,
    )
else:
    __getattr__, __dir__ = on_demand(
        __name__,
        {
            "onward": ("data", "exits"),
            "onward.data.augmentation": ("Cutout", "Flip", "Translate"),
            "onward.batch": ("Batch",),
            "onward.network.blocks": ("Block", "Edge"),
            "onward.checkpoint": ("load", "save"),
            "onward.comparison.contests": ("compare",),
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
            "onward.comparison.figures": ("Comparison",),
            "onward.inference": ("answer", "calibrate", "evaluate", "export"),
            "onward.runs.listeners": ("CSVLog", "TensorBoard"),
            "onward.runs.progress": ("Bars",),
            "onward.network.layers": ("Dense", "ReadoutLayer", "normalize_length"),
            "onward.network.networks": ("Network",),
            "onward.network.objectives": ("CrossEntropy", "Objective", "Threshold"),
            "onward.network.optimizers": ("SGD", "Adam", "Optimizer", "optimizer"),
            "onward.placement": ("Placement",),
            "onward.data.preprocessing": ("Preprocessing", "Whitening"),
            "onward.network.readouts": (
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
            "onward.runs.results": ("Listener", "Progress", "Result"),
            "onward.network.samplers": ("LabelEmbedding", "Plain", "Sampler", "Views"),
            "onward.sampling": ("Sampled", "sample"),
            "onward.settings": (
                "DataConfig",
                "NetworkConfig",
                "OptimizerConfig",
                "PlacementConfig",
                "PlanConfig",
                "TrainingConfig",
            ),
            "onward.network.stages": ("Stage",),
            "onward.runs.training": ("run", "train"),
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
