"""Samples whose scores are not finite: they are told of, and where all are, nothing is counted."""

import math
from dataclasses import replace

import pytest
import torch
from commands import onward
from own_recipe import changed
from torch import nn

import onward as ow
from onward.batch import Batch
from onward.errors import SettingError
from onward.evaluation import Evaluation, evaluate
from onward.runs.doubts import doubts


class Given(ow.Objective):
    """Scores each sample by what the block puts out."""

    def loss(self, inputs, outputs, draw):
        return outputs["input"].tensor.square().mean()

    def scores(self, outputs):
        return outputs.tensor.clamp(max=9).sub(9).neg().log()


def network():
    block = ow.Block(nn.Identity(), Given(), None)
    return ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=3)


def asked(*rows):
    return Batch(torch.tensor(rows), {"label": torch.zeros(len(rows), dtype=torch.int64)})


def test_samples_are_counted_that_have_no_largest_score():
    possible, impossible, odd = [1.0, 2.0, 9.0], [9.0, 9.0, 9.0], [1.0, 2.0, math.nan]

    found = evaluate(network(), asked(possible, impossible, odd))

    assert found.unscored == 2
    assert found.told_unscored.startswith("2 of 3 samples have scores that are not finite, such")


def test_where_no_sample_has_scores_nothing_is_counted():
    with pytest.raises(SettingError, match="Nothing can be counted: 2 of 2 samples have scores"):
        evaluate(network(), asked([math.nan] * 3, [9.0] * 3))


def test_samples_without_scores_are_a_doubt_and_a_warning():
    found = evaluate(network(), asked([1.0] * 3, [math.nan] * 3))

    assert doubts([], found)[0].startswith("In the test, 1 of 2 samples have scores that are not")
    assert doubts([], replace(found, unscored=0)) == []
    assert Evaluation(0, 0, {}).told_unscored is None


ODD = """
        class Odd(ow.CrossEntropy):
            def scores(self, outputs):
                scores = super().scores(outputs)
                scores[::7] = float("nan")
                return scores
        head = Odd(nn.Linear(outputs, data.num_classes))
"""


@pytest.mark.usefixtures("own_recipe", "unchecked_module")
def test_the_command_says_how_many_samples_have_no_scores(capsys):
    changed("        head = ow.CrossEntropy(nn.Linear(outputs, data.num_classes))\n", ODD)
    assert onward("train", "mine.py:small", "--out", "run") == 0
    capsys.readouterr()

    assert onward("evaluate", "run", "--recipe", "mine.py:small") == 0

    said = capsys.readouterr().err
    assert "onward: note: " in said
    assert "samples have scores that are not finite, such as NaN" in said
