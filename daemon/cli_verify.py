"""The command `listingd verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.cli_options import EXIT_FAILED, config_option, run_async

if TYPE_CHECKING:
    from daemon.verify import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "bright_black"}


@click.command()
@click.option("--url", help="URL of the service; LISTINGD_URL, else the settings' own address.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@config_option
def verify(url: str | None, as_json: bool, config: Path | None) -> None:
    """Check an installed service from end to end.

    Settings, state dir, database, schema, LISTEN, storage, then a job over HTTP. Run it where the service
    runs, as the user it runs as. Exit code 0 when nothing failed.
    """
    from daemon.verify import verify as run_checks

    findings = run_async(run_checks(config, url=url, tell=_ignore if as_json else _print))
    failed = [finding for finding in findings if finding.outcome == "fail"]
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [finding.as_json() for finding in findings]}))
    else:
        click.echo(f"\n{len(failed)} failed." if failed else "\nAll is well.")
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)


def _print(finding: Finding) -> None:
    mark = click.style(f"{finding.outcome:<4}", fg=_COLOURS[finding.outcome])
    click.echo(f"{mark}  {finding.name:<10} {finding.duration_ms:>8.1f} ms  {finding.detail}")
    if finding.hint:
        click.echo(f"{'':<29}hint: {finding.hint}")


def _ignore(_: Finding) -> None:
    """Nothing: the findings are printed together at the end."""
