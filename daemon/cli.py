"""The command `listingd`. Each group of commands has a module of its own, daemon/cli_<topic>.py."""

from __future__ import annotations

import gc
import io
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.cli_demo import demo
from daemon.cli_jobs import enqueue, jobs
from daemon.cli_keys import keys
from daemon.cli_openapi import openapi
from daemon.cli_options import EXIT_FAILED, Commands, config_option, read_settings, run_async
from daemon.cli_queues import queues, top
from daemon.cli_schedules import schedules
from daemon.cli_verify import verify

if TYPE_CHECKING:
    from daemon.migrate import Applied, Migration
    from daemon.settings import Settings


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """One product photo in, an Amazon listing out: main image, picture pack, A+ document.

    Settings come from LISTINGD_… variables, a TOML file (--config) and systemd credentials; see
    docs/configuration.md.
    """


@commands.command()
@config_option
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.")
def serve(config: Path | None, host: str | None, port: int | None) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    settings = read_settings(config, http={"host": host, "port": port})

    from daemon import logs, metrics, service

    writer = logs.configure(settings)
    metrics.DROPPED_LINES.set_function(lambda: writer.dropped)

    def leave() -> None:
        writer.close()
        os._exit(0)

    try:
        run_async(service.serve(settings, leave=leave))
    finally:
        writer.close()


@commands.command()
@config_option
@click.option("--pending", "only_list", is_flag=True, help="List what is missing, change nothing.")
def migrate(config: Path | None, only_list: bool) -> None:
    """Bring the database to the schema of this release."""
    settings = read_settings(config)
    found = run_async(_migrate(settings, only_list=only_list))
    for item in found:
        click.echo(f"{'missing' if only_list else 'applied'}  {item.number:04d}  {item.name}")
    if not found:
        click.echo("The schema is up to date.")


async def _migrate(settings: Settings, *, only_list: bool) -> list[Applied] | list[Migration]:
    from daemon import migrate as runner
    from daemon.embedded import embedded_postgres, hold_state_dir
    from daemon.errors import Unavailable, first_cause

    act = runner.pending if only_list else runner.migrate
    if settings.database_url is not None:
        try:
            return await act(settings.database_url.get_secret_value())
        except Unavailable as exc:
            if exc.hint and exc.__cause__ is None:  # it knows better what is wrong: tables that stay busy
                raise
            raise Unavailable(
                f"The database does not answer: {first_cause(exc)}.",
                hint="Start it, or correct LISTINGD_DATABASE_URL; nothing was changed.",
            ) from exc
    with hold_state_dir(settings):
        async with embedded_postgres(settings) as dsn:
            return await act(dsn)


@commands.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed_version

    click.echo(f"listingd {installed_version('listingd')} (Python {platform.python_version()})")


def _have_standard_files() -> None:
    """Standard files for those who start us without (`<&-`), and output that any locale can write.

    Whatever is opened next would get their numbers: log lines would go to a database connection, and libuv
    aborts when it closes one of them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


for command in (demo, verify, enqueue, jobs, queues, top, schedules, keys, openapi):
    commands.add_command(command)


def main() -> None:
    """Entry point of the command `listingd`."""
    _have_standard_files()
    gc.set_threshold(300_000, 20, 100)  # imports leave nothing to collect; service.serve sets its own
    try:
        commands(prog_name="listingd")
    except OSError:
        # Is it the output that fails? Then it takes no line's end either. (click sees to a pipe that nobody reads.)
        try:
            os.write(1, b"\n")
        except OSError as exc:
            # What is buffered would fail at the exit again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            click.echo(f"error: The output cannot be written: {exc.strerror}.", err=True)
            sys.exit(EXIT_FAILED)
        raise
