"""The commands `listingd schedules list|set|remove`: jobs that the clock enqueues, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from daemon.cli_calls import call_service, json_option, print_json, read_input, url_option
from daemon.cli_options import config_option


@click.group()
def schedules() -> None:
    """Look at what the clock enqueues, and change it."""


@schedules.command("list")
@json_option
@url_option
@config_option
def list_schedules(*, as_json: bool, url: str | None, config: Path | None) -> None:
    """List the schedules."""
    found = call_service(config, url, "GET", "/v1/admin/schedules")
    if as_json:
        print_json(found)
        return
    click.echo(f"{'NAME':<20} {'KIND':<6} {'CRON':<18} {'ZONE':<18} NEXT")
    for schedule in found["data"]:
        following = (
            schedule["upcoming"][0] if schedule["upcoming"] else "never" if schedule["enabled"] else "off"
        )
        click.echo(
            f"{schedule['name']:<20} {schedule['kind']:<6} {schedule['cron']:<18} {schedule['time_zone']:<18} {following}"
        )


@schedules.command("set")
@click.argument("name")
@click.argument("cron")
@click.argument("kind", type=click.Choice(("image", "pack", "aplus", "ping")))
@click.option("--input", "given", default="{}", help="The job's input as JSON, @FILE, or - for stdin.")
@click.option("--user-id", help="For whom.")
@click.option("--time-zone", default="UTC", show_default=True, help="Whose clock counts.")
@click.option(
    "--missed", type=click.Choice(("skip", "once", "all")), default="once", show_default=True,
    help="Times at which no daemon ran: none is made up for, one job for all, one job each.",
)  # fmt: skip
@click.option(
    "--overlap", type=click.Choice(("allow", "skip")), default="allow", show_default=True,
    help="Whether a job is enqueued while the last one is open.",
)  # fmt: skip
@click.option("--off", is_flag=True, help="Keep it, but fire nothing.")
@json_option
@url_option
@config_option
def set_schedule(
    name: str, given: str, *, off: bool, as_json: bool, url: str | None, config: Path | None, **fields: Any
) -> None:
    """Enqueue a job of KIND at the times of CRON (five fields in quotes), or change what NAME does."""
    body = {key: value for key, value in fields.items() if value is not None}
    body |= {"input": read_input(given), "enabled": not off}
    made = call_service(config, url, "PUT", _path(name), body=body)
    if as_json:
        print_json(made)
    else:
        click.echo(
            f"{name} fires at "
            + (", ".join(made["upcoming"]) or "no time")
            + (" …" if made["upcoming"] else ".")
        )


@schedules.command()
@click.argument("name")
@url_option
@config_option
def remove(name: str, *, url: str | None, config: Path | None) -> None:
    """Fire NAME no more; its jobs stay."""
    call_service(config, url, "DELETE", _path(name))
    click.echo(f"{name} is removed.")


def _path(name: str) -> str:
    return f"/v1/admin/schedules/{quote(name, safe='')}"
