"""Tables as HTML, which notebooks show."""

from collections.abc import Mapping
from html import escape


def table(title: str, rows: Mapping[str, str]) -> str:
    """Return a table of two columns, in which nothing that a text holds is HTML.

    Example:
        >>> table("run", {"data": "<b>"})
        '<table><caption>run</caption><tr><th>data</th><td>&lt;b&gt;</td></tr></table>'
    """
    body = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items()
    )
    return f"<table><caption>{escape(title)}</caption>{body}</table>"
