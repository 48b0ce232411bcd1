"""Leaving early: when inference may stop, what that saves, and how thresholds are found."""

from onward.exits.calibration import Calibrated, calibrate, mean_minus_std
from onward.exits.policies import CONFIDENCES, ExitPolicy, full_depth
from onward.exits.stages import Answers, answer

__all__ = [
    "answer",
    "Answers",
    "calibrate",
    "Calibrated",
    "CONFIDENCES",
    "ExitPolicy",
    "full_depth",
    "mean_minus_std",
]
