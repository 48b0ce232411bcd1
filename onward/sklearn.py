"""The estimator for scikit-learn: recipes in pipelines, grid searches and cross-validation."""

import tempfile
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from onward.batch import Batch
from onward.checkpoint import load, save
from onward.config import RunConfig
from onward.data import Dataset
from onward.data.splits import num_held
from onward.data.tables import densified, is_sparse, warn_of_rounding
from onward.errors import DataError, SettingError
from onward.network.networks import Network
from onward.recipes import RECIPES
from onward.runs.results import Listener
from onward.runs.training import run, train

MODEL = "model.safetensors"
"""Name of the file that a pickled estimator holds."""

PARAMETERS = {
    "training.epochs": "epochs",
    "training.batch_size": "batch_size",
    "training.seed": "random_state",
    "training.precision": "precision",
    "training.init": "warm_start",
    "network.widths": "widths",
    "data.class_weights": "class_weight",
}
"""Settings that are parameters of the estimator."""

IDLE = ("data.name", "data.label", "data.dir", "data.test", "data.context")
"""Settings that say where samples come from."""


class OnwardClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Trains a recipe on vectors of numbers, as scikit-learn's classifiers are trained.

    It learns from all samples given to `fit`; none are held out, unless `settings` has
    `data.validation`, as early stopping (`plan.patience`) needs it. Samples may be sparse matrices
    (scipy): their zeros are written out, within a quarter of the machine's memory.

    Args:
        recipe: Name of a recipe that comes with Onward, see `onward recipes`.
        widths: Units of each block, for recipes of dense blocks. None: the recipe's own.
        epochs: Passes over the samples. None: the recipe's own.
        batch_size: Samples of a mini-batch; all of them, where there are fewer.
        random_state: Decides all randomness: a whole number, or as elsewhere in scikit-learn.
        precision: Arithmetic of matrix products: `fp32`, `bf16` or `auto`.
        class_weight: How much samples of each class count in the loss, by label; `balanced`: all
            classes the same, however many samples they have. For recipes that can weigh samples.
        warm_start: Whether another call of `fit` goes on from the weights that there are, with an
            optimizer in its first state. Not for recipes of several stages.
        settings: Any other settings by full name, such as `{"optimizer.lr": 0.01}`.

    Attributes:
        classes_: Labels of the classes, sorted.
        n_features_in_: Number of features.
        n_iter_: Epochs trained: fewer than asked for after early stopping.
        feature_names_in_: Names of the columns, where samples came with names.
        network_: The trained `ow.Network`.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.model_selection import cross_val_score
        >>> x, y = load_iris(return_X_y=True)
        >>> estimator = OnwardClassifier(widths=(50, 50), epochs=30, batch_size=10)
        >>> bool(cross_val_score(estimator, x, y, cv=3).mean() > 0.8)
        True
    """

    def __init__(
        self,
        recipe: str = "one-pass",
        *,
        widths: tuple[int, ...] | None = None,
        epochs: int | None = None,
        batch_size: int = 100,
        random_state: int | np.random.RandomState | None = 0,
        precision: str = "fp32",
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        warm_start: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.recipe = recipe
        self.widths = widths
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state
        self.precision = precision
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.settings = settings

    def fit(self, X: Any, y: Any) -> "OnwardClassifier":
        """Train on samples and their classes.

        Args:
            X: Samples, shape (samples, features); dense or sparse.
            y: A class for each sample: numbers or texts.

        Raises:
            ValueError: Samples, classes or settings cannot be used; the message says why.
        """
        known = dict(self.__dict__)
        try:
            return self._fitted(X, y)
        except BaseException:
            # What was fitted before stays.
            self.__dict__.clear()
            self.__dict__.update(known)
            raise

    def _fitted(self, X: Any, y: Any) -> "OnwardClassifier":
        before: Network | None = getattr(self, "network_", None) if self.warm_start else None
        given = X
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=True,
            dtype=np.float32,
            ensure_min_samples=2,
            reset=before is None,
        )
        columns = _names(getattr(self, "feature_names_in_", None))
        if not is_sparse(X) and getattr(given, "dtype", None) != np.float32:
            warn_of_rounding(np.asarray(given), columns, "X")
        X = densified(X, "X") if is_sparse(X) else np.array(X)
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        known = getattr(self, "classes_", classes)
        stages: int = getattr(self, "num_stages_", 1)
        if before is not None and stages > 1:
            raise SettingError(
                f"{self.recipe} trains {stages} stages, and a warm start would repeat the last "
                f"alone. Set warm_start=False."
            )
        if before is not None and list(classes) != list(known):
            raise DataError(
                f"warm_start goes on with the classes {known.tolist()}, and these samples have "
                f"{classes.tolist()}. Give samples of the same classes, or set warm_start=False."
            )
        if len(classes) < 2:
            raise DataError(
                f"All {len(y)} samples have the class {classes[0].item()!r}; a classifier takes "
                f"two classes at least."
            )
        config = self._config(len(X))
        built = RunConfig(
            recipe=config.recipe,
            network=config.network,
            optimizer=config.optimizer,
            data=config.data,
        ).to_toml()
        if before is not None and built != getattr(self, "built_", built):
            raise SettingError(
                "A warm start goes on with the network that there is, and recipe, widths or "
                "settings of data, network or optimizer have changed. Set warm_start=False."
            )
        training = Batch(
            torch.from_numpy(X),
            {"label": torch.from_numpy(labels)},
            weights=self._weights(classes, y, labels),
        )
        dataset = Dataset(
            name="samples",
            training=training,
            test=training.take(slice(0, 0)),
            num_classes=len(classes),
            feature_names=columns,
        )
        if before is None:
            result = run(config, Listener(), dataset=dataset)
        else:
            result = train(
                before,
                dataset,
                training=config.training,
                plan=config.plan,
                validation=config.data.validation,
                class_weights=config.data.class_weights,
                labelled=config.data.labelled,
                listener=Listener(),
            )
        assert result is not None
        self.classes_: NDArray[Any] = classes
        self.network_, self.num_stages_ = result.network, 1 + len(result.earlier)
        self.built_ = built
        trained = result.facts["chapters_trained"] / result.facts["chapters"]
        self.n_iter_ = round(config.training.epochs * trained)
        return self

    def _weights(
        self, classes: NDArray[Any], y: NDArray[Any], labels: NDArray[Any]
    ) -> torch.Tensor | None:
        """Return how much each sample counts; None where all count the same."""
        if self.class_weight is None:
            return None
        each = compute_class_weight(self.class_weight, classes=classes, y=y)
        if not np.isfinite(each).all() or each.min() < 0 or not each.any():
            raise SettingError(
                f"class_weight gives the classes the weights {each.tolist()}; weights are 0 or "
                f"more, and one at least is above 0."
            )
        weights = torch.from_numpy(each)[torch.from_numpy(labels)]
        return (weights / weights.mean()).float()

    def _config(self, samples: int) -> RunConfig:
        """Return the settings of a run."""
        if self.recipe not in RECIPES:
            raise DataError(
                f"There is no recipe {self.recipe!r}; there are {', '.join(sorted(RECIPES))}."
            )
        config, own = RunConfig(recipe=self.recipe), dict(self.settings or {})
        for name in own:
            if name in PARAMETERS or name in IDLE:
                instead = (
                    f"Use the parameter {PARAMETERS[name]}."
                    if name in PARAMETERS
                    else "Samples are what fit is given. Leave it out."
                )
                raise SettingError(f"settings has {name}. {instead}")
        changes: dict[str, Any] = {
            "data.validation": 0,
            "training.seed": _seed(self.random_state),
            "training.batch_size": _plain(self.batch_size),
            "training.precision": self.precision,
        }
        if self.epochs is not None:
            changes["training.epochs"] = _plain(self.epochs)
        if self.widths is not None:
            changes["network.widths"] = tuple(map(_plain, np.atleast_1d(self.widths)))
        own = {name: _plain(value) for name, value in own.items()}
        config = config.with_settings(changes | own)
        learned = samples - num_held(config.data.validation, samples)
        size = min(config.training.batch_size, max(learned, 1))
        return config.with_settings({"training.batch_size": size})

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most likely class of each sample."""
        scores = self._scores(X)
        found: NDArray[Any] = self.classes_[scores.argmax(axis=1)]
        return found

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return probabilities of the classes, see `ow.Network.predict_proba`."""
        shares: NDArray[Any] = softmax(self._scores(X).astype(np.float64), axis=1)
        return shares

    def _scores(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self, "network_")
        X = validate_data(self, X, reset=False, accept_sparse=True, dtype=np.float32)
        X = densified(X, "X") if is_sparse(X) else X
        found: NDArray[Any] = self.network_.scores(X).network.float().cpu().numpy()
        return found

    def __sklearn_tags__(self) -> Tags:
        """Say that sparse matrices may be given."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle: arrays and JSON, and no code of a network."""
        state = dict(super().__getstate__())
        network = state.pop("network_", None)
        if isinstance(network, Network):
            with tempfile.TemporaryDirectory() as folder:
                save(network, Path(folder) / MODEL)
                state["model"] = (Path(folder) / MODEL).read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle."""
        state = dict(state)
        model = state.pop("model", None)
        super().__setstate__(state)
        if model is not None:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / MODEL).write_bytes(model)
                self.network_ = load(Path(folder) / MODEL)


def _names(columns: NDArray[Any] | None) -> tuple[str, ...] | None:
    """Return names of columns as a data set has them."""
    return None if columns is None else tuple(map(str, columns))


def _plain(value: Any) -> Any:
    """Return a number of numpy as Python's own; searches over parameters hand them out."""
    return value.item() if isinstance(value, np.generic) else value


def _seed(random_state: Any) -> int:
    """Return the seed that a random state stands for."""
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))
