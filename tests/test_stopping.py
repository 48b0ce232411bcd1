"""Validations that decide: where training ends, and whose weights are kept."""

import json

import pytest
from commands import onward
from plans import chapters_of_two_blocks, stream_of_two_blocks
from prepared import assert_same_weights, reference

import onward as ow
from onward.errors import SettingError
from onward.placement import place, stall
from onward.plan.standing import NEVER, Standing
from onward.runs.preparation import preview

pytestmark = pytest.mark.usefixtures("unchecked_module")

SETTINGS = {
    "network.widths": (24, 20),
    "training.epochs": 12,
    "training.batch_size": 200,
    "training.precision": "fp32",
    "optimizer.lr": 0.1,
    "training.schedule": "constant",
}


def trained(**changes):
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return ow.run(ow.RunConfig(recipe="one-pass").with_settings(SETTINGS | named))


def validations(result):
    return {p.chapter: p.figures["validation_accuracy"] for p in result.progress if p.block is None}


def first_without_a_better_one(accuracies, patience):
    """Return the chapter after which training is to end: the plain rule, over a list."""
    for chapter in range(patience, len(accuracies)):
        if max(accuracies[chapter - patience + 1 : chapter + 1]) <= max(
            accuracies[: chapter - patience + 1]
        ):
            return chapter
    return None


@pytest.fixture(scope="module")
def whole():
    return trained(plan__validate_every=1)


@pytest.mark.parametrize(("patience", "age"), [(1, 1), (2, 1), (1, 3)])
def test_training_ends_where_validations_get_no_better(whole, patience, age):
    accuracies = list(validations(whole).values())
    last = first_without_a_better_one(accuracies, patience)
    end = last + age

    result = trained(plan__patience=patience, plan__stop_age=age)

    assert end < 12
    assert result.facts["chapters_trained"] == end
    assert result.facts["best_chapter"] == accuracies[:end].index(max(accuracies[:end]))
    assert list(validations(result).values()) == accuracies[:end]
    assert {p.chapter for p in result.progress} == set(range(end))
    # The rate is constant, so a run of so many epochs learns the same.
    assert_same_weights(result.network, trained(training__epochs=end).network)
    assert result.validation.accuracy == accuracies[end - 1]


@pytest.mark.parametrize("kind", ["chapters", "stream"])
@pytest.mark.parametrize("patience", [None, 2])
def test_the_weights_of_the_best_validation_are_kept(kind, patience):
    every = validations(trained(plan__kind=kind, plan__validate_every=1))
    ended = trained(plan__kind=kind, plan__patience=patience, plan__keep_best=True)
    seen = list(every.values())[: ended.facts["chapters_trained"]]
    best = seen.index(max(seen))

    assert 0 < best < len(seen) - 1
    assert ended.facts["best_chapter"] == best
    assert ended.validation.accuracy == max(seen)
    shorter = trained(plan__kind=kind, training__epochs=best + 1)
    assert_same_weights(ended.network, shorter.network)


def test_validations_every_third_chapter_decide_as_well():
    result = trained(plan__patience=1, plan__validate_every=3, optimizer__lr=0.3)

    end = result.facts["chapters_trained"]
    assert end < 12
    assert end % 3 == 0
    assert sorted(validations(result)) == list(range(2, end, 3))


@pytest.mark.parametrize("keep_best", [False, True])
def test_a_chapter_between_the_last_validation_and_the_end_is_judged_as_itself(keep_best):
    result = trained(
        plan__patience=1,
        plan__validate_every=2,
        plan__stop_age=2,
        plan__keep_best=keep_best,
        optimizer__lr=0.2,
        training__epochs=20,
    )

    end, best = result.facts["chapters_trained"], result.facts["best_chapter"]
    found = validations(result)
    assert end < 20
    assert best < end
    assert end % 2 == 1
    assert max(found) == end - 1
    assert result.validation.accuracy == found[best if keep_best else end - 1]


def test_training_that_gets_better_to_the_end_is_not_ended():
    result = trained(plan__patience=3, optimizer__lr=0.002, training__epochs=4)

    assert result.facts["chapters_trained"] == 4
    assert sorted(validations(result)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("chapters", "ended early"),
        ("chapters", "ended early with hints, best kept"),
        ("stream", "ended early, best kept"),
        ("stream", "ended early with hints of age 1"),
    ],
)
def test_runs_that_are_compared_under_placements_do_end_early(kind, case):
    from prepared import CHAPTERS, STREAMS, prepare

    recipe, changes = (CHAPTERS if kind == "chapters" else STREAMS)[case]
    (runtime,) = prepare(recipe, changes).run("sequential", 1)

    assert runtime.worker.end < runtime.plan.chapters
    assert_same_weights(runtime.worker.network, reference(kind, case))


@pytest.mark.parametrize("name", ["patience", "keep_best"])
def test_without_validation_samples_it_is_refused(name):
    with pytest.raises(SettingError, match=rf"plan.{name} compares .*Set data.validation"):
        trained(data__validation=0, **{f"plan__{name}": 1 if name == "patience" else True})


def test_shards_have_validation_samples_of_their_own():
    with pytest.raises(SettingError, match=r"plan.patience .* each of the 2 shards has its own"):
        trained(plan__patience=1, plan__shards=2)


def test_the_first_of_equal_validations_is_the_best():
    first = Standing(best=-1, merit=-1, since=0, end=NEVER).after(0, 5, patience=2, age=1)

    assert first.after(1, 5, patience=2, age=1) == Standing(best=0, merit=5, since=1, end=NEVER)
    assert first.after(1, 6, patience=2, age=1) == Standing(best=1, merit=6, since=0, end=NEVER)


def test_an_end_does_not_move():
    ended = Standing(best=0, merit=5, since=1, end=3)

    assert ended.after(2, 9, patience=1, age=2) == Standing(best=2, merit=9, since=0, end=3)
    assert ended.after(2, 4, patience=1, age=2).end == 3


def test_an_age_below_the_number_of_ranks_is_told_where_ranks_take_turns():
    judged = {"patience": 1, "has_validation": True, "validate_every": 1}
    plan = chapters_of_two_blocks(**judged)
    later = chapters_of_two_blocks(**judged, stop_age=2)
    stream = stream_of_two_blocks(hint_age=None, **judged)

    assert "plan.stop_age is 1 and there are 2 ranks" in stall(
        plan, place(plan, "all-layers", 2, [1, 1])
    )
    assert stall(later, place(later, "all-layers", 2, [1, 1])) is None
    assert stall(plan, place(plan, "sequential", 1, [1, 1])) is None
    assert stall(stream, place(stream, "stream", 2, [1, 1])) is None


def test_the_command_says_where_training_ended(tmp_path, capsys):
    given = [
        f"--set={name}={value}" for name, value in SETTINGS.items() if name != "network.widths"
    ]
    folder = tmp_path / "run"

    onward("train", "--widths", "24,20", *given, "--patience=1", "--keep-best", f"--out={folder}")

    found = json.loads((folder / "result.json").read_text())
    said = capsys.readouterr()
    end, best = found["chapters_trained"], found["best_chapter"]
    assert end < 12
    assert f"Training ended after {end} of 12 chapters" in said.err
    assert f"{end} of 12, the best: chapter {best}" in said.out


@pytest.mark.parametrize(
    ("recipe", "changes", "every"),
    [
        ("one-pass", {}, 1),
        # Five passes a sample, where an epoch has as many.
        ("hinton", {"plan.chapters": 10}, None),
        ("one-pass", {"plan.patience": 3, "data.validation": 0.5}, 1),
        ("one-pass", {"data.validation": 0.5}, None),
        ("one-pass", {"data.validation": 0.5, "plan.validate_every": 2}, 2),
    ],
    ids=str,
)
def test_each_chapter_is_validated_where_it_is_cheap(recipe, changes, every):
    config = ow.RunConfig(recipe=recipe).with_settings({"training.epochs": 10} | changes)

    (begun,) = preview(config, 1)

    assert begun.plan.validate_every == every
