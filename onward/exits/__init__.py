"""Early exit: when inference may stop, what that saves, and how thresholds are found."""

from onward.exits.answers import Answers
from onward.exits.bounds import BOUNDS
from onward.exits.calibration import (
    Calibrated,
    candidates,
    choose,
    held_out,
    mean_minus_std,
)
from onward.exits.latency import Latency, measure
from onward.exits.macs import StageCost, macs_spent, stage_costs
from onward.exits.outcomes import RISKS, HeldOut, Outcome, fixed_depths, follow, oracle, shuffled
from onward.exits.policies import CONFIDENCES, ExitPolicy, full_depth

__all__ = [
    "Answers",
    "BOUNDS",
    "Calibrated",
    "candidates",
    "choose",
    "CONFIDENCES",
    "ExitPolicy",
    "fixed_depths",
    "follow",
    "full_depth",
    "held_out",
    "HeldOut",
    "Latency",
    "macs_spent",
    "mean_minus_std",
    "measure",
    "oracle",
    "Outcome",
    "RISKS",
    "shuffled",
    "stage_costs",
    "StageCost",
]
