"""Parameters of which `make test` takes some, and a run without -m "not slow" all."""

import pytest


def thinned(parameters, every=3):
    """Return parameters, all but the first of each few marked slow."""
    found = []
    for number, given in enumerate(parameters):
        name = getattr(given, "id", None)
        values = getattr(given, "values", given)
        values = values if isinstance(values, tuple | list) else (values,)
        marks = [pytest.mark.slow] * (number % every > 0)
        found.append(pytest.param(*values, marks=marks, id=name))
    return found
