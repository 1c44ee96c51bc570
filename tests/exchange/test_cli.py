"""`store-credit import` and `store-credit export`, as people run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from store_credit.cli import exchange
from store_credit.exchange import importing
from store_credit.ledger.refusals import Unavailable
from tests.exchange import bookkeeping
from tests.exchange.test_books import bean_check
from tests.server import environment
from tests.test_cli import cli, printed, sentence

HEADER = "customerId,currency,amount,upstreamId,name,expiresTime,reason\n"
MEMORY_MIB_MAX = 200


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file of three lines in two currencies."""
    rows = ["c-1,USD,100.00,u-1,Gift card,2099-01-01T00:00:00Z,old shop", "c-1,JPY,500,u-2,,,"]
    path = tmp_path / "good.csv"
    path.write_text(HEADER + "\n".join([*rows, "c-2,USD,0.5,u-3,,,"]))
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A file with two bad rows among two good ones."""
    path = tmp_path / "mixed.csv"
    path.write_text(HEADER + "c-1,USD,1,u-1,,,\nc-2,USD,1.001,u-2,,,\nc-3,USD,3,u-3,,,\nc-4,USD,4,u-1,,,\n")
    return path


def balances(url: str) -> dict[str, float]:
    rows = printed("export", "lines", "--format", "jsonl", url=url).splitlines()
    return {row["upstreamId"]: row["balance"] for row in map(json.loads, rows)}


def test_a_file_is_imported_once(database_url: str, good: Path) -> None:
    said = printed("import", str(good), url=database_url)
    assert said == "3 lines imported; 0 were there from an earlier import.\n"
    said = printed("import", str(good), url=database_url)
    assert said == "0 lines imported; 3 were there from an earlier import.\n"
    assert balances(database_url) == {"u-1": 100, "u-2": 500, "u-3": 0.5}
    assert printed("audit", url=database_url).startswith("The books are right")


def test_one_bad_row_keeps_all_out(database_url: str, mixed: Path) -> None:
    result = cli("import", str(mixed), url=database_url)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "row 3: amount: has more decimals than USD allows (2)",
        "row 5: upstreamId: is that of row 2, too",
        "store-credit: Nothing was imported: 2 bad rows.",
    ]
    assert balances(database_url) == {}


def test_one_is_not_counted_as_many(sqlite_url: str, tmp_path: Path) -> None:
    one = tmp_path / "one.csv"
    one.write_text("customerId,currency,amount,upstreamId\nc,USD,1,u\nc,USD,1.005,v\n")
    refused = cli("import", str(one), url=sqlite_url)
    assert refused.stderr.endswith("Nothing was imported: 1 bad row.\n")
    result = cli("import", str(one), "--keep-going", url=sqlite_url)
    assert result.stdout == "1 line imported; 0 were there from an earlier import.\n"
    assert result.stderr.endswith("1 bad row was left out.\n")
    again = cli("import", str(one), "--keep-going", url=sqlite_url)
    assert again.stdout == "0 lines imported; 1 was there from an earlier import.\n"


def test_keep_going_imports_the_good_rows(database_url: str, mixed: Path) -> None:
    result = cli("import", str(mixed), "--keep-going", url=database_url)
    assert result.exit_code == 1
    assert result.stdout == "2 lines imported; 0 were there from an earlier import.\n"
    assert result.stderr.splitlines()[-1] == "2 bad rows were left out."
    assert balances(database_url) == {"u-1": 1, "u-3": 3}


def test_a_file_of_another_kind_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes("customerId,currency\n".encode("utf-16"))
    assert "UTF-16" in sentence(cli("import", str(path), url=sqlite_url))
    path.write_text("customerId,currency\n")
    assert "must name the columns" in sentence(cli("import", str(path), url=sqlite_url))
    assert cli("import", str(tmp_path / "none.csv"), url=sqlite_url).exit_code == 2


def test_a_pipe_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    said = sentence(cli("import", str(tmp_path / "pipe"), url=sqlite_url))
    assert said == "The file must be one on disk, and no pipe: it is read twice."


def test_what_is_printed_of_a_file_is_plain(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "escape.csv"
    path.write_text(HEADER + 'c,USD,1,u,,"[red]\x1b[2J",\n')
    result = cli("import", str(path), url=sqlite_url)
    assert "\x1b" not in result.stderr
    assert "row 2: expiresTime" in result.stderr


def test_progress_is_shown_on_a_terminal(
    sqlite_url: str, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    result = cli("import", str(good), url=sqlite_url)
    assert result.exit_code == 0
    assert "Checking" in result.stderr
    assert "Importing" in result.stderr
    assert "3/3" in result.stderr


def test_an_import_that_is_stopped_says_how_to_go_on(
    sqlite_url: str, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise Unavailable("The database does not answer.")

    with monkeypatch.context() as patched:
        patched.setattr(importing, "_issue_one", away)
        said = sentence(cli("import", str(good), url=sqlite_url))
    assert said == "The database does not answer. The same command goes on from here."
    assert printed("import", str(good), url=sqlite_url).startswith("3 lines imported")


@pytest.mark.parametrize("noun", ["lines", "entries", "deductions"])
def test_exports_are_csv_unless_told_otherwise(database_url: str, good: Path, noun: str) -> None:
    printed("import", str(good), url=database_url)
    rows = printed("export", noun, url=database_url).splitlines()
    assert rows[0].startswith("id,")
    as_json = printed("export", noun, "--format", "jsonl", url=database_url).splitlines()
    assert len(rows) - 1 == len(as_json) == (0 if noun == "deductions" else 3)


def test_books_are_for_the_named_program(database_url: str, good: Path, tmp_path: Path) -> None:
    printed("import", str(good), url=database_url)
    text = printed("export", "journal", "--format", "beancount", url=database_url)
    assert text.count(" * ") == 3
    # The program itself accepts it.
    assert bean_check(text, tmp_path) == ""
    assert bookkeeping.read(
        printed("export", "journal", "--format", "hledger", url=database_url)
    ).assertions
    assert cli("export", "journal", url=database_url).exit_code == 2
    assert cli("export", "journal", "--format", "csv", url=database_url).exit_code == 2


def many(path: Path, count: int) -> Path:
    with path.open("w") as file:
        file.write(HEADER)
        file.writelines(f"customer-{n},USD,{n + 1}.25,old-{n},Gift card,,\n" for n in range(count))
    return path


def test_a_reader_that_leaves_ends_an_export(sqlite_url: str, tmp_path: Path) -> None:
    printed("import", str(many(tmp_path / "many.csv", 1_000)), url=sqlite_url)
    started = subprocess.Popen(
        [sys.executable, "-m", "store_credit", "export", "lines"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(sqlite_url),
    )
    assert started.stdout is not None
    assert started.stderr is not None
    with started.stdout, started.stderr:
        started.stdout.readline()
        started.stdout.close()
        assert started.stderr.read() == b""
        assert started.wait() == exchange.PIPE_CLOSED


def test_an_import_stays_within_its_memory(postgresql_url: str, tmp_path: Path) -> None:
    path = many(tmp_path / "many.csv", 10_000)
    # What a process took is asked of itself: the system's own account includes that of its parent.
    script = (
        "import atexit, re, sys; from store_credit.cli import main; status = '/proc/self/status';"
        "atexit.register(lambda: print(re.search(r'VmHWM:\\s*(\\d+)', open(status).read())[1]));"
        f"sys.argv = ['store-credit', 'import', {str(path)!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(postgresql_url)
    )
    assert done.returncode == 0
    assert done.stdout.startswith("10000 lines imported")
    assert int(done.stdout.split()[-1]) / 1024 < MEMORY_MIB_MAX
