"""`store-credit import` and `store-credit export`: files in, files and books out."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from store_credit.cli.session import Session, actor, counted, fail, plain, run
from store_credit.exchange import books, exporting, importing
from store_credit.exchange.importing import Checked, Issued
from store_credit.exchange.opening import Problem, UnreadableFile
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.refusals import Unavailable

export_app = typer.Typer(help="Write lines, entries, deductions or books.", no_args_is_help=True)

Form = Annotated[exporting.Format, typer.Option("--format", help="For spreadsheets, or for programs.")]
Program = Annotated[books.Program, typer.Option("--format", help="The program that will read them.")]
KeepGoing = Annotated[bool, typer.Option("--keep-going", help="Leave bad rows out, import the others.")]

PIPE_CLOSED = 141
"""The exit code of a program that wrote to a pipe nobody reads any more, as shells know it."""


@export_app.command("lines")
def export_lines(form: Form = "csv") -> None:
    """Write all credit lines, oldest first."""
    _write(lambda ledger: exporting.export(ledger, "lines", form))


@export_app.command("entries")
def export_entries(form: Form = "csv") -> None:
    """Write the journal, line by line."""
    _write(lambda ledger: exporting.export(ledger, "entries", form))


@export_app.command("deductions")
def export_deductions(form: Form = "csv") -> None:
    """Write what was spent on orders, oldest first."""
    _write(lambda ledger: exporting.export(ledger, "deductions", form))


@export_app.command("journal")
def export_journal(program: Program) -> None:
    """Write double-entry books with balance assertions."""
    _write(lambda ledger: books.journal(ledger, program))


def import_lines(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A CSV file, as docs/finance.md says.")
    ],
    keep_going: KeepGoing = False,
) -> None:
    """Issue a credit line for each row of a file: all of them, or none if any row is wrong.

    The same file twice changes nothing, and after an interruption the same command goes on.
    """
    if not file.is_file():
        fail("The file must be one on disk, and no pipe: it is read twice.")

    async def work(session: Session) -> tuple[Checked, Issued | None]:
        with file.open("rb") as opened, _progress() as progress:
            return await _import(session.ledger, opened, keep_going, progress)

    try:
        checked, issued = run(work, make=True)
    except UnreadableFile as error:
        fail(str(error))
    if issued is None:
        fail(f"Nothing was imported: {counted(checked.bad, 'bad row')}.")
    present = checked.present + issued.present
    done = counted(issued.issued, "line")
    typer.echo(f"{done} imported; {present} {_were(present)} there from an earlier import.")
    if bad := checked.bad + issued.refused:
        typer.echo(f"{counted(bad, 'bad row')} {_were(bad)} left out.", err=True)
        raise typer.Exit(1)


async def _import(
    ledger: Ledger, file: BinaryIO, keep_going: bool, progress: Progress
) -> tuple[Checked, Issued | None]:
    def report(problem: Problem) -> None:
        progress.console.print(plain(f"row {problem.row}: {problem.message}"), soft_wrap=True)

    checking = progress.add_task("Checking", total=os.fstat(file.fileno()).st_size)
    checked = await importing.check(ledger, file, report, _advance(progress, checking))
    if checked.bad and not keep_going:
        return checked, None
    issuing = progress.add_task("Importing", total=checked.new)
    advance = _advance(progress, issuing)
    try:
        return checked, await importing.issue(ledger, file, checked, actor(), report, advance)
    except Unavailable as error:
        raise Unavailable(f"{error.message} The same command goes on from here.") from None


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _progress() -> Progress:
    """A progress bar on standard error; nothing but the problems when that is no terminal."""
    console = Console(stderr=True, emoji=False, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _advance(progress: Progress, task: TaskID) -> Callable[[int], None]:
    return lambda completed: progress.update(task, completed=completed)


def _write(pieces: Callable[[Ledger], AsyncIterator[bytes]]) -> None:
    """Write an export to standard output, as it comes."""

    async def work(session: Session) -> bool:
        try:
            async for piece in pieces(session.ledger):
                await asyncio.to_thread(sys.stdout.buffer.write, piece)
            await asyncio.to_thread(sys.stdout.buffer.flush)
        except BrokenPipeError:
            return False
        return True

    if not run(work):
        # What is left in the buffer has nowhere to go; Python must not try at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE_CLOSED)
