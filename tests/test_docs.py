"""Documentation that cannot drift. `python tests/test_docs.py` writes anew what is derived."""

import doctest
import inspect
import json
import os
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import recipe_pages
from test_runs import RESULT

import onward as ow
from onward.cli.flags import FLAGS
from onward.cli.parser import make_parser
from onward.config import RunConfig
from onward.recipes import RECIPES
from onward.values import meanings

ROOT = Path(__file__).parent.parent
COMMAND = ROOT / "docs" / "command.md"
API = ROOT / "docs" / "api.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

HELP = re.compile(r"^```console\n\$ onward ?(\w*) --help\n.*?^```$", re.MULTILINE | re.DOTALL)
SETTINGS = re.compile(r"(?<=<!-- settings -->\n).*(?=<!-- end of settings -->)", re.DOTALL)
NAME = re.compile(r"^- `ow\.(\w+)`: .*$", re.MULTILINE)
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands():
    """Return the parser of each command by name, that of them all without one."""
    parser = make_parser()
    (choices,) = (a.choices for a in parser._actions if isinstance(a.choices, dict))
    return {"": parser} | choices


def choices_of(kind):
    """Return the words that a setting may be."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [choice for part in get_args(kind) for choice in choices_of(part)]


def settings_table():
    lines = ["", "| setting | default | what it says |", "| --- | --- | --- |"]
    sections = {name: type(value) for name, value in vars(RunConfig()).items() if name != "method"}
    for section, owner in sections.items():
        texts = meanings(owner) if is_dataclass(owner) else {}
        for name in (setting.name for setting in fields(owner)) if texts else ():
            text = texts[name]
            default = getattr(owner(), name)
            value = "" if default is None else f"`{json.dumps(default)}`"
            choices = ", ".join(f"`{c}`" for c in choices_of(get_type_hints(owner)[name]))
            end = f" Words: {choices}." if choices else ""
            lines.append(f"| `{section}.{name}` | {value} | {text}{end} |")
    return "\n".join(lines) + "\n\n"


def written_anew(page):
    """Return the text of a page with the help of each command and all settings as they are now."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "80"
    parsers = commands()

    def show(block):
        name = block[1]
        command = " ".join(part for part in ("onward", name, "--help") if part)
        return f"```console\n$ {command}\n{parsers[name].format_help()}```"

    try:
        text = HELP.sub(show, page)
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return SETTINGS.sub(lambda block: settings_table(), text)


def words(text):
    """Return a text without what differs between versions of Python.

    These are line breaks, and whether VALUE is written once or twice in `--flag VALUE, -f VALUE`.
    """
    return re.sub(r"(--[a-z-]+) ([A-Z_]+), (-[a-z]) \2", r"\1, \3 \2", " ".join(text.split()))


def names_written_anew(page):
    """Return the page on public names with the first line of the docstring of each as it is."""

    def line(found):
        thing = getattr(ow, found[1])
        if not (inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing)):
            return found[0]
        first = " ".join(inspect.getdoc(thing).partition("\n\n")[0].split())
        return f"- `ow.{found[1]}`: {first}"

    return NAME.sub(line, page)


# docs/api.md


def test_every_public_name_is_on_its_page():
    found = NAME.findall(API.read_text())

    assert sorted(["__version__", *found]) == sorted(ow.__all__)


def test_the_page_on_public_names_is_up_to_date():
    page = API.read_text()

    assert names_written_anew(page) == page, "python tests/test_docs.py writes it anew"


# docs/command.md


def test_the_page_on_the_command_is_up_to_date():
    page = COMMAND.read_text()

    assert words(written_anew(page)) == words(page), "python tests/test_docs.py writes it anew"


@pytest.mark.parametrize("command", commands())
def test_every_command_and_every_flag_of_it_is_on_its_page(command):
    shown = {block[1]: block[0] for block in HELP.finditer(COMMAND.read_text())}

    for flag in re.findall(r"--[a-z-]+", commands()[command].format_help()):
        assert flag in shown[command]


def test_every_flag_that_stands_for_a_setting_is_on_the_page():
    page = COMMAND.read_text()

    assert [flag for flag in FLAGS if flag not in page] == []


def test_every_setting_is_on_the_page():
    page = COMMAND.read_text()

    assert [n for n in RunConfig().setting_names() if "." in n and f"`{n}`" not in page] == []


def test_every_setting_that_is_on_the_page_can_be_set():
    on_page = re.findall(r"^\| `(\w+\.\w+)` \|", SETTINGS.search(COMMAND.read_text())[0], re.M)

    assert set(on_page) == {name for name in RunConfig().setting_names() if "." in name}


def names_of(described, prefix=""):
    for name, inner in described.items():
        if isinstance(inner, dict):
            yield from names_of(inner, f"{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_field_of_the_result_is_on_the_page():
    page = COMMAND.read_text()

    assert [name for name in names_of(RESULT) if f"`{name}`" not in page] == []


# All pages


@by_name
def test_links_point_at_files_that_exist(page):
    targets = [link.partition("#")[0] for link in LINK.findall(page.read_text())]
    local = [target for target in targets if target and "://" not in target]

    assert [target for target in local if not (page.parent / target).exists()] == []


def anchors_of(page):
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@by_name
def test_links_into_pages_point_at_headings_that_exist(page):
    for link in LINK.findall(page.read_text()):
        target, _, anchor = link.partition("#")
        if anchor and "://" not in link:
            assert anchor in anchors_of(page.parent / target if target else page), link


@by_name
@pytest.mark.usefixtures("unchecked")  # As users run it.
def test_python_on_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, block in enumerate(PYTHON.findall(page.read_text()), 1):
        where = f"{page.name}, block {number}"
        if ">>>" not in block:
            exec(compile(block, where, "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(block, names, where, str(page), 0)
        report = []
        runner = doctest.DocTestRunner(verbose=False)
        assert not runner.run(test, out=report.append, clear_globs=False).failed, "".join(report)
        names |= test.globs


# Recipes


def test_there_is_a_page_on_each_recipe_and_on_nothing_else():
    assert {page.stem for page in recipe_pages.FOLDER.glob("*.md")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_page_on_a_recipe_is_up_to_date(name):
    page = (recipe_pages.FOLDER / f"{name}.md").read_text()

    current = recipe_pages.written_anew(page, RECIPES[name])
    assert current == page, "python tests/test_docs.py writes it anew"
    assert "## When to use it" in page
    assert "## Measured" in page


if __name__ == "__main__":
    COMMAND.write_text(written_anew(COMMAND.read_text()))
    API.write_text(names_written_anew(API.read_text()))
    recipe_pages.write_all()
