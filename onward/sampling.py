"""Samples of text from a network that predicts the next byte, with early exit."""

from dataclasses import dataclass

import torch

from onward import seeds
from onward.arguments import check_arguments
from onward.batch import Batch
from onward.data.text import BYTES
from onward.errors import SettingError
from onward.exits.answers import answers_to
from onward.exits.policies import ExitPolicy, full_depth
from onward.inference import Trained, opened
from onward.network.networks import Network


@dataclass(frozen=True, slots=True)
class Sampled:
    """Text that a network has written."""

    text: bytes
    """What it wrote, without the prompt."""

    mean_exits: float
    """Exits that a byte went through, on average: blocks, where each block is one."""

    num_exits: int
    """Exits that there are."""


@torch.no_grad()
def sample(
    trained: Trained,
    prompt: bytes,
    *,
    num_bytes: int,
    temperature: float | int = 1.0,
    confidence: float | int | None = None,
    seed: int = 0,
) -> Sampled:
    """Let a network go on with a text, byte by byte.

    Each byte is drawn anew from the last bytes of the text, as many as a window has; nothing that
    was computed for the byte before is used again.

    Args:
        trained: A network that predicts the next byte, or the path of its run folder or model file.
        prompt: How the text begins.
        num_bytes: How many bytes are added.
        temperature: What log-probabilities are divided by before a byte is drawn; 0 takes the
            most likely one.
        confidence: Probability of the most likely byte from which on an earlier block decides.
            None: always the last.
        seed: Decides what is drawn.

    Raises:
        SettingError: The network predicts no bytes, or an argument is out of range.
    """
    check_arguments(sample, {"prompt": prompt})
    if not prompt:
        raise SettingError("The prompt is empty. Begin with one byte at least, such as a space.")
    if num_bytes < 1:
        raise SettingError(f"The number of bytes to sample is 1 or more; got {num_bytes}.")
    if not 0 <= temperature < float("inf"):
        raise SettingError(f"The temperature is a number of 0 or more; got {temperature}.")
    if confidence is not None and not 0 <= confidence <= 1:
        raise SettingError(f"The confidence is a probability, from 0 to 1; got {confidence}.")
    network = opened(trained)
    context = _context(network)
    policy = full_depth(network.num_exits)
    if confidence is not None:
        policy = ExitPolicy("probability", (float(confidence),) * len(policy.thresholds))
    draw = seeds.generator(seed, "sample")
    text, visited = bytearray(prompt), 0
    for _ in range(num_bytes):
        window = torch.tensor([list(text[-context:])], dtype=torch.int16)
        found = answers_to(network, Batch(window), policy)
        visited += int(found.exits) + 1
        scores = found.scores[0]
        if temperature == 0:
            text.append(int(scores.argmax()))
            continue
        chances = (scores.double() / temperature).softmax(dim=0)
        text.append(int(chances.multinomial(1, generator=draw)))
    return Sampled(bytes(text[len(prompt) :]), visited / num_bytes, network.num_exits)


def _context(network: Network) -> int:
    """Return the bytes of a window.

    Raises:
        SettingError: The network reads something else, or predicts something else.
    """
    shape = network.inputs.shape
    if network.inputs.kind != "kept" or len(shape or ()) != 1 or network.num_classes != BYTES:
        raise SettingError(
            f"This network does not go on with text: it was trained on samples of shape {shape} "
            f"and {network.num_classes} classes, and not on windows of bytes, of which one of "
            f"{BYTES} follows. Train one with `onward train byte-lm --data FILE.txt`."
        )
    assert shape is not None
    return shape[0]
