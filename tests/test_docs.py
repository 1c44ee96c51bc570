"""The pages under `docs` and the README's command line, executed: what they show is what happens.

What a page may count on:

- Its ```sh blocks run in order, in one shell (`sh -eu`) and an empty folder, against an empty database.
- `store-credit` is the command line; the service runs at `http://localhost:8000` with the credentials
  `digital-river:secret` (callout) and `merchant:secret`, and the webhook secret `secret`.
- A ```text, ```csv or ```json block right after it is the outcome: `...` stands for anything, and
  white space is all the same. Of JSON objects, fields may be left out. Without an outcome, it is enough
  that all succeeds.
- A comment that begins with `<!-- sh` runs like a block and is not shown to the reader.
- A block that uses a program of `OPTIONAL` is left out where that is not installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from store_credit.ledger.state import Reason
from tests.server import environment, running

PROJECT = Path(__file__).parents[1]
PAGES = sorted((PROJECT / "docs").glob("*.md"))
OPTIONAL = ("curl", "openssl", "bean-check", "bean-query", "hledger")
URL = "http://localhost:8000"
SECRETS = {"CALLOUT_PASSWORD": "secret", "MERCHANT_PASSWORD": "secret", "WEBHOOK_SECRETS": "secret"}
PAGE_SECONDS_MAX = 300
_MARK = "<<< end of block >>>"
_BLOCK = re.compile(
    r"^```sh\n(?P<shown>.*?)^```\n(?:\n*^```(?P<kind>text|csv|json)\n(?P<outcome>.*?)^```\n)?"
    r"|^<!-- sh\n(?P<hidden>.*?)^-->\n",
    re.M | re.S,
)


@dataclass(frozen=True, slots=True)
class Block:
    """What is run, and what must come of it."""

    script: str
    kind: str | None
    outcome: str | None

    @property
    def is_possible(self) -> bool:
        """Whether all programs that it uses are there."""
        used = [name for name in OPTIONAL if re.search(rf"(?<![\w/-]){name}(?![\w-])", self.script)]
        return all(shutil.which(name) for name in used)

    def check(self, found: str) -> None:
        if self.outcome is None:
            return
        if self.kind == "json":
            assert _is_like(json.loads(self.outcome), json.loads(found)), f"{self.script}\n{found}"
            return
        assert _matches(self.outcome, found), f"{self.script}\n{found}"


def blocks(text: str) -> list[Block]:
    return [
        Block(found["shown"] or found["hidden"], found["kind"], found["outcome"])
        for found in _BLOCK.finditer(text)
    ]


def run(page: list[Block], url: str, env: dict[str, str], folder: Path) -> None:
    """Run the blocks that are possible here, and check what each printed."""
    possible = [block for block in page if block.is_possible]
    script = "".join(f"{block.script}\nprintf '%s\\n' '{_MARK}'\n" for block in possible)
    done = subprocess.run(
        ["sh", "-eu", "-c", script.replace(URL, url)],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PAGE_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    printed = done.stdout.split(f"{_MARK}\n")
    for block, found in zip(possible, printed, strict=False):
        block.check(found)


@pytest.fixture
def place(sqlite_url: str, tmp_path: Path) -> Iterator[tuple[str, dict[str, str], Path]]:
    """A running service's URL, the environment of a shell beside it, and its folder."""
    folder = tmp_path / "here"
    programs = tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    command = programs / "store-credit"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m store_credit "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    env = environment(sqlite_url, **SECRETS)
    env["PATH"] = os.pathsep.join([str(programs), str(Path(sys.executable).parent), env["PATH"]])
    with running(sqlite_url, tmp_path, **SECRETS) as [server]:
        yield server.url, env, folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_what_happens(page: Path, place: tuple[str, dict[str, str], Path]) -> None:
    found = blocks(page.read_text())
    assert found, "a page has examples"
    run(found, *place)


def test_the_readme_shows_what_happens(place: tuple[str, dict[str, str], Path]) -> None:
    section = (PROJECT / "README.md").read_text().partition("\n## The command line\n")[2]
    found = blocks(section.partition("\n## ")[0])
    assert found
    run(found, *place)


@pytest.mark.parametrize("page", [PROJECT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    ("outcome", "found", "same"),
    [
        ("a  b\n", "a b", True),
        ("id ... is\nactive", "id cl_1 is\nactive\n", True),
        ("a ... z", "a\nb\nz", True),
        ("a", "a b", False),
        ("a.b", "axb", False),
    ],
)
def test_outcomes_match(outcome: str, found: str, same: bool) -> None:
    assert _matches(outcome, found) == same


@pytest.mark.parametrize(
    ("outcome", "found", "same"),
    [
        ({"a": "cl_..."}, {"a": "cl_1", "b": 2}, True),
        ({"a": [1, "..."]}, {"a": [1, 5]}, True),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": True}, {"a": 1}, False),
    ],
)
def test_json_outcomes_match(outcome: Any, found: Any, same: bool) -> None:
    assert _is_like(outcome, found) == same


def _matches(outcome: str, found: str) -> bool:
    parts = [re.escape(part.strip()) for part in _plain(outcome).split("...")]
    return re.fullmatch(".*?".join(parts), _plain(found)) is not None


def _plain(text: str) -> str:
    """The text without its line ends and the widths of its columns."""
    return " ".join(text.split())


def _is_like(outcome: Any, found: Any) -> bool:
    if isinstance(outcome, dict):
        return isinstance(found, dict) and all(
            name in found and _is_like(value, found[name]) for name, value in outcome.items()
        )
    if isinstance(outcome, list):
        same_length = isinstance(found, list) and len(found) == len(outcome)
        return same_length and all(_is_like(*pair) for pair in zip(outcome, found, strict=True))
    if isinstance(outcome, str) and "..." in outcome:
        return _matches(outcome, str(found))
    return isinstance(outcome, bool) == isinstance(found, bool) and bool(outcome == found)


def test_support_knows_every_answer_to_digital_river() -> None:
    reasons = list(Reason)[: list(Reason).index(Reason.DEDUCTED)]
    page = (PROJECT / "docs" / "support.md").read_text()
    rows = re.findall(r"^\| (.*?) \|", page, re.M)
    known = {answer.replace(" ", "_") for row in rows for answer in row.split(", ")}
    assert set(reasons) <= known
