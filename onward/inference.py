"""Evaluates, calibrates, queries and exports a network, given as an object or as a path."""

import warnings
from pathlib import Path

import torch

from onward import evaluation, onnx_files
from onward.batch import CHUNK_SAMPLES, Batch
from onward.checkpoint import load
from onward.data.dataset import Dataset
from onward.data.numbers import Numbers
from onward.errors import DataError, OnwardWarning, SettingError
from onward.evaluation import Evaluation, as_trained, checked_labels
from onward.exits import answers
from onward.exits.answers import Answers
from onward.exits.calibration import MOST_OVERLAP, Calibrated, choose, held_out
from onward.exits.macs import Like
from onward.exits.policies import ExitPolicy, full_depth
from onward.network.networks import Network
from onward.network.readouts import Readout
from onward.runs import folders

Trained = Network | Path | str
"""A trained network, or the path of a run folder or model file."""


def opened(trained: Trained, network: Network | None = None) -> Network:
    """Return a trained network, read from its file where it is given by a path.

    Args:
        trained: The network, or the path of a run folder or model file.
        network: For a path: the network that the script builds, which takes the weights. Needed
            where no recipe that comes with Onward has built it; `onward.load` tells more.

    Raises:
        SettingError: Two networks are given.
        FileError: See `onward.load`.
    """
    if not isinstance(trained, Network):
        return load(trained, network)
    if network is not None:
        raise SettingError(
            "Two networks are given. network= is what takes the weights of a run folder or model "
            "file, whose path then comes first."
        )
    return trained


def evaluate(
    trained: Trained,
    x: Numbers | Batch | Dataset,
    y: Numbers | None = None,
    *,
    readout: Readout | None = None,
    network: Network | None = None,
) -> Evaluation:
    """Count the samples that a network gets right.

    Args:
        trained: A trained network, or the path of a run folder or model file.
        x: Samples, or a data set, of which the test samples are counted: those it came with, or
            those held out of the others. (`onward evaluate --data` counts all samples of data
            without a test set; to do the same, give arrays.) Warns if test samples equal training
            samples of the network, except in graphs.
        y: Their true classes; None where a batch has them. Of a batch without classes, or where
            the network names none, nothing is counted. Where all names of classes are whole
            numbers, such as 1, 2 and 3, numbers in an array are names; in a tensor they count
            classes from 0, as in data sets.
        readout: Another readout than the network's own.
        network: See `opened`.

    Raises:
        DataError: Samples or classes are not like those of the training, or there are no classes.
        SettingError: No sample has scores that are finite.
    """
    asked = opened(trained, network)
    if isinstance(x, Dataset):
        dataset = as_trained(asked, x)
        batch = asked.checked(dataset.test)
        text = None if batch.structure else told_known(asked, dataset)
        if text is not None:
            warnings.warn(text, OnwardWarning, stacklevel=2)
    else:
        batch = asked.checked(x)
    if y is not None:
        labels = checked_labels(asked, y, len(batch))
        batch = batch.with_targets(label=labels)
    elif not isinstance(x, Batch | Dataset):
        raise DataError("These samples have no classes to be compared with. Give them as y.")
    found = evaluation.evaluate(asked, batch, readout)
    if found.told_unscored is not None:
        warnings.warn(found.told_unscored, OnwardWarning, stacklevel=2)
    return found


def told_known(network: Network, dataset: Dataset) -> str | None:
    """Return that a network was trained on test samples of a data set, where it was."""
    known = network.trained_on.overlap(dataset.test) if network.trained_on else 0.0
    if known <= MOST_OVERLAP:
        return None
    return (
        f"{dataset.name}: about {known:.0%} of the samples that are counted equal training "
        f"samples of this network."
    )


def calibrate(
    trained: Trained,
    x: Numbers | Batch,
    y: Numbers | None = None,
    *,
    confidence: str = "margin",
    max_error_increase: float | None = None,
    target_macs: float | None = None,
    delta: float | None = None,
    bound: str | None = None,
    risk: str = "lost",
    force: bool = False,
    network: Network | None = None,
) -> Calibrated:
    """Choose the thresholds of an exit policy.

    Of policies from very cautious to very bold, each the cheapest for some price of an error, the
    boldest is taken that keeps to what is allowed.

    Args:
        trained: A trained network. Or the path of a run folder, which then gets its `exits.json`,
            or of a model file; the network that is read computes in fp32, whatever the precision
            of the training was.
        x: Samples that it was not trained on, and is not tested on: an array or a batch.
        y: Their classes, as for `evaluate`; None where the batch has them, numbered as the network
            numbers them.
        confidence: How sure it is: a name of `ow.exits.CONFIDENCES`.
        max_error_increase: Share of samples that may become wrong: 0.001 is a tenth of a percent.
        target_macs: Mean MACs a sample instead.
        delta: With probability 1 - delta the error on new samples like these rises by at most
            `max_error_increase`. Without a `bound`, that of fixed-sequence.
        bound: What is guaranteed for new samples, a name of `ow.exits.BOUNDS`. The samples are then
            cut in two: one half makes the policies, the other tests them, from cautious to bold,
            and the last before the first that fails is taken. That holds for samples drawn one by
            one; samples of few patients or recordings are not. The network must not have been
            chosen by them either.

            - None: nothing.
            - "fixed-sequence": each policy is tested by a binomial test, with `delta`.
            - "ucb": each by an upper confidence bound (Waudby-Smith & Ramdas), with `delta`. Of
              these three it alone also holds for the risk `net`, whose losses lie in [-1, 1].
            - "expectation": conformal risk control, without `delta`. It promises an expectation
              over calibration samples drawn: the mean over many calibrations is at most
              `max_error_increase`, while a single one may exceed it, and many do.
        risk: What may be at most `max_error_increase`, a name of `ow.exits.RISKS`. "lost": the
            share of samples that the whole network gets right and the policy wrong; samples for
            which it is the other way round are no credit, since on new samples they would be
            others. "net": the lost share less the share gained, which is the change of the error.
        force: Whether the samples may be those of the training; that is recorded.
        network: See `opened`.

    Raises:
        SettingError: The settings do not go together, or there is no exit to leave at.
        DataError: The samples are those of the training.
        FileError: The run cannot be read, or its folder not written to.

    Source:
        Fixed-sequence testing of thresholds: Angelopoulos et al. 2021, arXiv:2110.01052 (learn
        then test), section 2. Early exit with the other bounds: Jazbec et al. 2024 (Fast yet Safe),
        arXiv:2405.20915. Each is derived in `onward.exits.bounds`.

    Example:
        >>> import onward as ow
        >>> digits = ow.load_data("digits")
        >>> network = ow.mlp(digits.input_shape, num_classes=10, widths=(32, 32))
        >>> x, y = digits.x_test[:200], digits.y_test[:200]
        >>> ow.calibrate(network, x, y, max_error_increase=0.01).error_increase <= 0.01
        True
    """
    asked = _for_exits(trained, network)
    calibrated = choose(
        held_out(asked, x, y, force=force),
        confidence=confidence,
        max_error_increase=max_error_increase,
        target_macs=target_macs,
        delta=delta,
        bound=bound,
        risk=risk,
    )
    if calibrated.failure is not None:
        warnings.warn(calibrated.failure, OnwardWarning, stacklevel=2)
    folder = _folder(trained)
    if folder is not None:
        folders.write_exits(folder, asked, calibrated)
        # It would show what was calibrated before.
        (folder / folders.EXITS_PICTURE).unlink(missing_ok=True)
    return calibrated


def answer(
    trained: Trained,
    x: Numbers | Batch,
    policy: ExitPolicy | None = None,
    *,
    batch_size: int = CHUNK_SAMPLES,
    network: Network | None = None,
) -> Answers:
    """Predict the classes of samples, each no deeper than it has to go.

    Samples that have left are taken out of the batch; of a batch with a structure, they are passed
    along as neighbors of the others. The same samples in batches of other sizes get the same
    answers, except where a score is within rounding of a threshold.

    Args:
        trained: A trained network. Or the path of a run folder or model file, see `calibrate`.
        x: Samples like those of the training, see `Network.predict`.
        policy: When they leave. None: as the run folder says that was calibrated.
        batch_size: Samples at once; a batch with a structure is never cut.
        network: See `opened`.

    Raises:
        SettingError: The network has no readout, or another number of exits than the policy; or
            there is no policy.
        FileError: The run cannot be read.

    Example:
        >>> import onward as ow
        >>> network = ow.mlp((4,), num_classes=3, widths=(8, 8))
        >>> answer(network, torch.ones(2, 4), ow.ExitPolicy("margin", (0.0,))).exits
        tensor([0, 0])
    """
    asked = _for_exits(trained, network)
    policy = policy or _calibrated(trained, asked)
    if policy is None:
        raise SettingError(
            "Nothing says when samples leave. Give a policy, or calibrate the run with "
            "onward.calibrate first and give its folder."
        )
    return answers.answer(asked, x, policy, batch_size=batch_size)


def export(
    trained: Trained,
    folder: Path | str,
    policy: ExitPolicy | None = None,
    *,
    like: Like = None,
    int8: bool = False,
    network: Network | None = None,
) -> list[Path]:
    """Write a network as ONNX files, a manifest, and a program that runs them.

    The folder then holds `stage-0.onnx` and so on, `manifest.json`, and `infer.py`, which needs
    onnxruntime and numpy only. For one file without early exit, `torch.onnx.export` takes the
    network itself.

    Args:
        trained: A trained network, or the path of a run folder or model file. It is exported in
            fp32.
        folder: Where; it is made where it is missing.
        policy: When inference stops. None: as the run folder says that was calibrated, and else
            never early.
        like: Samples that it is asked about, or the shape of one. None: those that it knows.
        int8: Whether weights are stored in eight bits, and activities rounded to eight as well.
        network: See `opened`.

    Returns:
        The files of the stages.

    Raises:
        SettingError: A package is missing, or the network cannot be exported.
        FileError: The run cannot be read, or the folder not written to.
    """
    asked = opened(trained, network)
    policy = policy or _calibrated(trained, asked) or full_depth(asked.num_exits)
    return onnx_files.export(asked, Path(folder), policy, like=like, int8=int8)


def _for_exits(trained: Trained, network: Network | None) -> Network:
    """Return a network for early exit; one that is read computes in fp32."""
    asked = opened(trained, network)
    if asked is not trained:
        asked.set_precision(torch.float32)
    return asked


def _folder(trained: Trained) -> Path | None:
    """Return the run folder, where one is given."""
    if isinstance(trained, Network) or not Path(trained).is_dir():
        return None
    return Path(trained)


def _calibrated(trained: Trained, network: Network) -> ExitPolicy | None:
    """Return the policy that is kept in a run folder, where one is given and was calibrated."""
    folder = _folder(trained)
    found = None if folder is None else folders.read_exits(folder, network)
    return None if found is None else found.policy
