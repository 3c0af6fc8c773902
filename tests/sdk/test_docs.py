"""Every command that the documentation shows exists, with the options that it shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import typer

import usufruct.cli
import usufruct_node.cli
from usufruct.features import FeatureSchema

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"usufruct": usufruct.cli.app, "usufruct-node": usufruct_node.cli.app}


def shown_commands() -> list[tuple[str, str]]:
    """(page, command) for every line of a shell block and every inline code that names one of our programs."""
    found: list[tuple[str, str]] = []
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = [
            line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
        ]
        lines += re.findall(r"(?<!`)`(usufruct(?:-node)? [^`\n]+)`", text)
        found += [(page.name, line) for line in lines if line.split(" ")[0] in PROGRAMS]
    return found


def shown_scripts() -> set[str]:
    return {
        path
        for page in PAGES
        for path in re.findall(r"scripts/[a-z_-]+(?:\.[a-z]+)?", page.read_text("utf-8"))
    }


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_shown_command_exists_with_its_options(page: str, line: str) -> None:
    program, *words = shlex.split(line)
    command: click.Command = typer.main.get_command(PROGRAMS[program])
    context = click.Context(command, info_name=program)
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-"):
            assert words in ([], ["--help"]), f"{page}: `{line}` names no command"
            return
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"{page}: `{line}`: {command.name} has no command {name}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize("path", sorted(shown_scripts()))
def test_shown_script_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_documentation_shows_commands_at_all() -> None:
    assert len(shown_commands()) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links {target}"


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", (ROOT / "docs/threats.md").read_text("utf-8")))
    existing = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_[a-z0-9_]+)", file.read_text("utf-8"), re.MULTILINE)
    }
    assert len(named) > 40
    assert named - existing == set()


@pytest.mark.parametrize("line", (ROOT / "docs/threats.md").read_text("utf-8").splitlines())
def test_every_threat_has_a_test(line: str) -> None:
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    if line.startswith("|") and cells[0] not in ("threat", "---"):
        assert "`test_" in cells[2], f"no test for: {cells[0]}"


def test_shown_schema_is_one() -> None:
    (shown,) = [
        block
        for page in PAGES
        for block in re.findall(r"```json\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
        if '"columns"' in block
    ]
    schema = FeatureSchema.from_dict(json.loads(shown))
    assert [column.name for column in schema.columns] == ["stride", "sway"]
