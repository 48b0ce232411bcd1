"""Text: windows of bytes, blocks that predict the next one, and what is sampled from them."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from commands import onward

import onward as ow
from onward.batch import Batch
from onward.data.text import read_text
from onward.exits.macs import stage_costs
from onward.flop_counter import FlopCounter
from onward.network.passes import passes
from onward.recipes.transformer import NextByte, rotated

COUNTING = Path(__file__).parent / "counting.txt"
CONTEXT = 12
TINY = {"layers": 4, "layers_per_block": 2, "dim": 16, "attention_heads": 2}
DATA = ow.DataInfo(input_shape=(CONTEXT,), num_classes=256)
SHORT = {
    "data.name": str(COUNTING),
    "data.context": 16,
    "network.dim": 32,
    "network.attention_heads": 2,
    "optimizer.lr": 1e-2,
    "network.layers_per_block": 1,
    "network.layers": 2,
    "training.epochs": 4,
    "training.batch_size": 10,
}


def written(folder, text):
    path = folder / "some.txt"
    path.write_bytes(text)
    return path


def network_of(data=DATA, seed=0, **changes):
    recipe = ow.RECIPES["byte-lm"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return recipe(recipe.settings(**TINY | changes), data)


def windows(number=5):
    """Return a batch of windows of random bytes, with what follows each."""
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(256, (number, CONTEXT + 1), generator=draw, dtype=torch.int16)
    return Batch(text[:, :-1], {"label": text[:, -1].long(), "next": text[:, 1:]})


# Reading


def test_a_text_becomes_windows_each_with_the_bytes_that_follow(tmp_path):
    dataset = read_text(written(tmp_path, b"abcdefghijklm"), context=3, test=1)

    assert dataset.training.tensor.tolist() == [[*b"abc"], [*b"def"], [*b"ghi"]]
    assert dataset.training.targets["next"].tolist() == [[*b"bcd"], [*b"efg"], [*b"hij"]]
    assert dataset.training.label.tolist() == [*b"dgj"]
    assert dataset.test.tensor.tolist() == [[*b"jkl"]]
    assert dataset.num_classes == 256


def test_any_bytes_are_text(tmp_path):
    every = bytes(range(256))

    dataset = read_text(written(tmp_path, every), context=5)

    both = torch.cat([dataset.x, dataset.x_test]).flatten()
    assert bytes(both.tolist()) == every[:255]


def test_the_test_windows_are_the_last_ones(tmp_path):
    dataset = ow.load_data(str(written(tmp_path, bytes(101))), context=10, test=0.25)

    assert (len(dataset.training), len(dataset.test)) == (7, 3)


@pytest.mark.parametrize(
    ("size", "test", "message"),
    [
        (0, 0.2, r"some.txt has 0 bytes.* take 17, with data.context = 8"),
        (16, 0.2, r"has 16 bytes.* take 17"),
        (17, 2, r"has 2 windows of data.context = 8 bytes, of which 2 cannot be held out"),
    ],
)
def test_a_text_that_is_too_short_is_refused_with_its_numbers(size, test, message, tmp_path):
    with pytest.raises(ow.DataError, match=message):
        read_text(written(tmp_path, bytes(size)), context=8, test=test)


def test_a_text_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ow.DataError, match=r"none\.txt cannot be read: No such file"):
        read_text(tmp_path / "none.txt", context=8)


def test_a_text_without_a_recipe_is_for_byte_lm():
    assert ow.RunConfig(data=ow.DataConfig(name="book.txt")).recipe == "byte-lm"


# The network


def outputs_of(network, text):
    return [passed.outputs.tensor for passed in passes(network, Batch(text))]


def test_a_later_byte_changes_no_earlier_prediction():
    network, text = network_of(), windows().tensor
    changed = text.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 256

    for before, after in zip(outputs_of(network, text), outputs_of(network, changed), strict=True):
        assert after[:, :7].equal(before[:, :7])
        assert (after[:, 7:] != before[:, 7:]).any(dim=2).all()


def test_scores_are_those_of_the_byte_after_the_window():
    network, batch = network_of(), windows()

    scores = network.scores(batch)

    *_, last = outputs_of(network, batch.tensor)
    expected = network.all_blocks[-1].objective.head(last)[:, -1].log_softmax(dim=1)
    torch.testing.assert_close(scores.network, expected)
    assert scores.network.equal(scores.blocks[-1])


def test_attention_knows_how_far_apart_bytes_are_and_not_where_they_are():
    draw = torch.Generator().manual_seed(1)
    query, key = (torch.randn(1, 1, 1, 8, generator=draw).expand(1, 1, 9, 8) for _ in range(2))

    products = (rotated(query) @ rotated(key).mT)[0, 0]

    for apart in range(3):
        torch.testing.assert_close(products.diagonal(apart), products[0, apart].expand(9 - apart))
    assert not products[0, 0].isclose(products[0, 1])


@pytest.mark.parametrize("odd", [300, -1, 65.7])
def test_numbers_that_are_no_bytes_are_refused(odd):
    text = windows().tensor
    text = text.float() if isinstance(odd, float) else text
    text[1, 3] = odd

    with pytest.raises(ow.DataError, match=rf"hold {odd}, and bytes are whole numbers from 0 to 2"):
        network_of().predict(Batch(text))


def test_bytes_may_be_floats():
    network, text = network_of(), windows().tensor

    assert network.predict(Batch(text.float())).equal(network.predict(Batch(text)))


def loss_of(objective, batch, tokens):
    views = {"input": batch.replace(inputs=tokens)}
    return objective.loss({"input": batch}, views, torch.Generator()), objective.metrics(views)


def test_the_loss_is_over_all_bytes_of_a_window_and_metrics_are_its_parts():
    batch, tokens = windows(), torch.randn(5, CONTEXT, 16, generator=torch.Generator())
    objective = NextByte(16, rank=None, is_multi_token=False)

    loss, metrics = loss_of(objective, batch, tokens)

    logits, following = objective.head(tokens).flatten(0, 1), batch.targets["next"].flatten().long()
    torch.testing.assert_close(loss, F.cross_entropy(logits, following))
    nats, number = metrics["nats"]
    assert number == 5 * CONTEXT
    assert float(nats) == pytest.approx(loss.item() * number)
    with torch.no_grad():
        again = objective.metrics({"neutral": batch.replace(inputs=tokens)})
    assert [s.item() for s, _ in again.values()] == [s.item() for s, _ in metrics.values()]
    right = (logits.argmax(dim=1) == following).sum()
    assert int(metrics["accuracy"][0]) == int(right)


def test_a_multi_token_target_adds_the_byte_after_the_next():
    batch, tokens = windows(), torch.randn(5, CONTEXT, 16, generator=torch.Generator())
    objective = NextByte(16, rank=None, is_multi_token=True)

    loss, metrics = loss_of(objective, batch, tokens)

    # At its first ten of twelve bytes the byte after the next is one of the window's own.
    ahead = objective.further(tokens)[:, : CONTEXT - 2].flatten(0, 1)
    known = F.cross_entropy(ahead, batch.tensor[:, 2:].flatten().long(), reduction="sum")
    last = F.cross_entropy(objective.further(tokens)[:, -2], batch.label, reduction="sum")
    nats = metrics["nats"][0] / metrics["nats"][1]
    torch.testing.assert_close(loss, nats + (known + last) / (5 * (CONTEXT - 1)))


def test_the_first_of_several_blocks_has_a_multi_token_target_which_is_not_shipped():
    def has_it(**changes):
        network = network_of(**changes)
        return [block.objective.further is not None for block in network.all_blocks]

    assert has_it(multi_token=True) == [True, False]
    assert has_it() == [False, False]
    for per_block in ("all", 4):
        assert has_it(multi_token=True, layers_per_block=per_block) == [False]
    shipped = network_of(multi_token=True).all_blocks[0].shipped()
    assert {name.split(".")[1] for name in shipped if name.startswith("objective.")} == {"head"}


def test_a_low_rank_head_is_a_product_of_two_narrow_matrices():
    full, low = network_of().all_blocks[1], network_of(head_rank=3).all_blocks[1]

    assert [tuple(p.shape) for p in full.objective.head.parameters() if p.ndim > 1] == [(256, 16)]
    shapes = [tuple(p.shape) for p in low.objective.head.parameters() if p.ndim > 1]
    assert shapes == [(3, 16), (256, 3)]
    logits = low.objective.head(torch.randn(40, 16, generator=torch.Generator()))
    assert int(torch.linalg.matrix_rank(logits)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 18, "attention_heads": 4}, r"network.dim is 18; it must be divisible by .*16 or"),
        (
            {"dim": 20, "attention_heads": 4},
            r"twice network.attention_heads, which is 4. Set network.dim to 16 or 24",
        ),
        ({"dim": 4, "attention_heads": 8}, r"Set network.dim to 16,"),
        ({"head_rank": 17}, r"network.head_rank = 17 is more than network.dim = 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ow.SettingError, match=message):
        network_of(**changes)


def test_samples_that_are_no_text_are_refused():
    with pytest.raises(ow.SettingError, match=r"shape \(1, 8, 8\) and 10 classes.*\.txt"):
        network_of(ow.DataInfo(input_shape=(1, 8, 8), num_classes=10))
    numbers = ow.dataset(torch.rand(40, 6).round(), torch.arange(40) % 2, num_classes=256)
    data = ow.DataInfo(input_shape=(6,), num_classes=256)
    with pytest.raises(ow.SettingError, match='need a target "next"'):
        ow.train(network_of(data), numbers, training=ow.TrainingConfig(batch_size=10))


# Runs


@cache
def counted():
    """Return a run on a text that counts; to be looked at."""
    return ow.run(ow.RunConfig(recipe="byte-lm").with_settings(SHORT))


def test_perplexity_of_each_block_on_held_out_text_is_told():
    result = counted()

    test = read_text(COUNTING, context=16).test
    outputs = [p.outputs for p in passes(result.network, test)]
    following = test.targets["next"].flatten().long()
    for block, read, told in zip(result.network.line, outputs, result.metrics, strict=True):
        with torch.no_grad():
            logits = block.objective.head(read.tensor).flatten(0, 1)
        nats = float(F.cross_entropy(logits, following))
        assert told["nats"] == pytest.approx(nats, rel=1e-2)  # In bf16, on some processors.
        assert told["perplexity"] == math.exp(told["nats"])
        assert 1 < told["perplexity"] < 3
    assert result.to_json()["metrics"] == result.metrics


def test_metrics_that_an_objective_does_not_have_are_not_told_of_test_samples():
    class Telling(ow.CrossEntropy):
        test_metric_names = ("accuracy", "nats")

    block = ow.Block(torch.nn.Linear(4, 8), Telling(torch.nn.Linear(8, 2)), ow.Adam())
    with pytest.raises(ow.SettingError, match="tells accuracy, nats of test samples"):
        ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=2)


def test_a_network_goes_on_counting():
    found = ow.sample(counted().network, b"one two three ", num_bytes=15, temperature=0)

    assert found.text == b"four five six s"
    assert (found.mean_exits, found.num_exits) == (2.0, 2)


def test_a_byte_is_taken_at_the_first_block_that_is_sure():
    network = counted().network

    bold = ow.sample(network, b"one", num_bytes=8, confidence=0.0)
    some = ow.sample(network, b"one", num_bytes=40, confidence=0.9)
    never = ow.sample(network, b"one", num_bytes=8, confidence=1.0)

    assert bold.mean_exits == 1
    assert 1 < some.mean_exits < 2
    assert never == ow.sample(network, b"one", num_bytes=8)


def test_what_is_sampled_follows_from_the_seed_and_the_temperature():
    network = network_of()
    network.inputs = counted().network.inputs

    def drawn(seed, temperature=1.0):
        return ow.sample(network, b"a", num_bytes=9, temperature=temperature, seed=seed).text

    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0, 0) == drawn(1, 0) == drawn(2, 1e-9)


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        (b"", {}, "prompt is empty"),
        (b"a", {"num_bytes": 0}, "1 or more; got 0"),
        (b"a", {"temperature": -1.0}, "0 or more; got -1.0"),
        (b"a", {"temperature": math.nan}, "0 or more; got nan"),
        (b"a", {"confidence": 1.5}, "from 0 to 1; got 1.5"),
    ],
)
def test_what_cannot_be_sampled_is_refused(prompt, changes, message):
    with pytest.raises(ow.SettingError, match=message):
        ow.sample(counted().network, prompt, **{"num_bytes": 4} | changes)


@pytest.mark.usefixtures("unchecked")
def test_a_prompt_that_is_no_bytes_is_refused():
    with pytest.raises(ow.SettingError, match=r"prompt must be bytes, such as b'def ' or text\.e"):
        ow.sample(counted().network, "def ", num_bytes=4)


def test_a_network_of_images_does_not_go_on_with_text():
    with pytest.raises(ow.SettingError, match=r"does not go on with text.*byte-lm"):
        ow.sample(ow.mlp((4,), num_classes=3), b"a", num_bytes=4)


# The command


def test_the_command_trains_on_a_text_and_goes_on_with_it(tmp_path, capsys):
    folder = tmp_path / "run"
    changes = [f"--set={name}={value}" for name, value in SHORT.items() if name != "data.name"]

    assert onward("train", "--data", COUNTING, *changes, "--epochs", "1", "--out", folder) == 0
    assert "test perplexity, each block alone" in capsys.readouterr().out
    assert json.loads((folder / "result.json").read_text())["recipe"] == "byte-lm"
    assert onward("evaluate", folder) == 0
    assert "perplexity, each block alone" in capsys.readouterr().out
    flags = ("--prompt", "one ", "--bytes", "9", "--confidence", "0")
    assert onward("sample", folder, *flags) == 0
    told = capsys.readouterr()
    assert told.out.startswith("one ")
    assert "9 bytes, each through 1.00 of 2 blocks on average" in told.err


# What it costs


def test_the_products_of_attention_are_counted():
    network = network_of(layers=1, layers_per_block=1)

    (stage,) = stage_costs(network, windows())

    tokens, dim = CONTEXT, 16
    layer = 12 * dim**2 * tokens + 2 * tokens**2 * dim
    assert stage.row == layer + 256 * dim + 256  # The head reads the last byte alone.


def test_the_products_of_attention_are_counted_backwards_as_well():
    query = torch.randn(2, 4, CONTEXT, 8, requires_grad=True)

    with FlopCounter() as counter:
        F.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()

    product = 2 * 2 * 4 * CONTEXT**2 * 8
    # Forwards two; backwards the first again, and two for each of them.
    assert counter.total == 2 * product + 5 * product
