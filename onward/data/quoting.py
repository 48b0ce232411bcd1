"""Names that users gave, as messages and tables show them."""

from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return names in a line, the first of many.

    Example:
        >>> listed(["cat", "dog"]), listed(list("abcd"), most=2)
        ("'cat', 'dog'", "'a', 'b', ... (4 names)")
    """
    text = ", ".join(text_of(name) for name in names[:most])
    return text if len(names) <= most else f"{text}, ... ({len(names)} names)"


def class_name(names: Sequence[str] | None, number: int) -> str:
    """Return what a class is called in a table: its name, or its number.

    Example:
        >>> class_name(("cat", "dog"), 1), class_name(None, 1)
        ("'dog'", '1')
    """
    return str(number) if names is None else text_of(names[number])


def text_of(name: str) -> str:
    r"""Return a name in quotes, a long one cut, with control characters escaped.

    Example:
        >>> text_of("cat\n"), text_of("x" * 100)
        ("'cat\\n'", "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'")
    """
    return repr(name if len(name) <= 40 else f"{name[:37]}...")
