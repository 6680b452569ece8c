"""The commands `listingd queues list|pause|resume|limit` and `listingd top`: what operators look at, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli_calls import call_service, json_option, print_json, url_option, with_service
from daemon.cli_options import config_option

if TYPE_CHECKING:
    from rich.console import Group

    from daemon.client import Client

KINDS = ("image", "pack", "aplus", "ping", "webhook")
_kind = click.argument("kind", type=click.Choice(KINDS))


@click.group()
def queues() -> None:
    """Look at the queues, pause and resume them."""


@queues.command("list")
@json_option
@url_option
@config_option
def list_queues(*, as_json: bool, url: str | None, config: Path | None) -> None:
    """List the queues, one a kind."""
    found = call_service(config, url, "GET", "/v1/admin/queues")
    if as_json:
        print_json(found)
        return
    click.echo(f"{'KIND':<9} {'PENDING':>8} {'RUNNING':>8} {'OLDEST':>9} {'LIMIT':>6}  STATE")
    for queue in found["data"]:
        click.echo(
            f"{queue['kind']:<9} {_pending(queue):>8} {queue['processing']:>8} {_age(queue['oldest_pending_s']):>9} "
            f"{_limit(queue['concurrency']):>6}  {_state(queue)}"
        )


@queues.command()
@_kind
@click.option("--why", default="", help="Shown to everybody who asks.")
@url_option
@config_option
def pause(kind: str, why: str, *, url: str | None, config: Path | None) -> None:
    """Start no more jobs of KIND; those that run go on."""
    _change(kind, {"paused": True, "why": why}, url, config)


@queues.command()
@_kind
@url_option
@config_option
def resume(kind: str, *, url: str | None, config: Path | None) -> None:
    """Start jobs of KIND again."""
    _change(kind, {"paused": False}, url, config)


@queues.command()
@_kind
@click.argument("jobs", type=click.IntRange(0, 10_000), required=False)
@url_option
@config_option
def limit(kind: str, jobs: int | None, *, url: str | None, config: Path | None) -> None:
    """Run at most JOBS of KIND at once, over all daemons; without JOBS there is no limit."""
    _change(kind, {"concurrency": jobs}, url, config)


@click.command()
@click.option(
    "--every-s",
    type=click.FloatRange(0.2, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Print it once and end.")
@url_option
@config_option
def top(every_s: float, *, once: bool, url: str | None, config: Path | None) -> None:
    """Show workers, queues and providers live, until Ctrl-C."""
    from rich.console import Console

    console = Console()
    if once or not console.is_terminal:
        console.print(_draw(*with_service(config, url, _look)))
        return
    try:
        with_service(config, url, lambda client: _show_live(client, console, every_s))
    except KeyboardInterrupt:
        raise click.exceptions.Exit(0) from None


async def _show_live(client: Client, console: Any, every_s: float) -> None:
    import asyncio

    from rich.live import Live

    from daemon.errors import Unavailable

    with Live(_draw(*await _look(client)), console=console, screen=True, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(every_s)
            try:
                live.update(_draw(*await _look(client)), refresh=True)
            except Unavailable as exc:  # it may be restarting: go on looking
                live.update(f"{exc.message} Looking again every {every_s:g} s …", refresh=True)


async def _look(client: Client) -> tuple[list[Any], list[Any], list[Any]]:
    """(workers, queues, providers) as the admin API gives them."""
    paths = ("workers", "queues", "providers")
    workers, found, providers = [(await client.call("GET", f"/v1/admin/{path}"))["data"] for path in paths]
    return workers, found, providers


def _draw(workers: list[Any], found: list[Any], providers: list[Any]) -> Group:
    from rich.console import Group
    from rich.table import Table

    def table(title: str, *heads: str) -> Any:
        made = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
            padding=(0, 3, 0, 0),
        )
        for number, head in enumerate(heads):
            made.add_column(head, justify="left" if number == 0 or head in ("state", "since") else "right")
        return made

    live = table("Workers", "instance", "running", "slots", "since", "state")
    for worker in workers:
        state = "[yellow]draining[/]" if worker["draining"] else "[green]ok[/]"
        live.add_row(
            worker["instance"],
            str(worker["running"]),
            str(worker["concurrency"]),
            worker["started_at"][:19],
            state,
        )
    if not workers:
        live.add_row("[red]none alive[/]")
    kinds = table("\nQueues", "kind", "pending", "running", "oldest", "limit", "state")
    for queue in found:
        colour = "yellow" if queue["paused"] else "green"
        kinds.add_row(
            queue["kind"], _pending(queue), str(queue["processing"]), _age(queue["oldest_pending_s"]),
            _limit(queue["concurrency"]), f"[{colour}]{_escape(_state(queue))}[/]",
        )  # fmt: skip
    lanes = table("\nProviders", "name", "in flight", "allowed", "state")
    for lane in providers:
        why = f"paused {lane['paused_s']:.0f} s: {lane['pause_code']}" if lane["is_paused"] else "ok"
        colour = "yellow" if lane["is_paused"] else "green"
        lanes.add_row(
            lane["name"], str(lane["in_flight"]), str(lane["allowed"]), f"[{colour}]{_escape(why)}[/]"
        )
    return Group(live, kinds, lanes) if providers else Group(live, kinds)


def _change(kind: str, body: dict[str, Any], url: str | None, config: Path | None) -> None:
    queue = call_service(config, url, "PATCH", f"/v1/admin/queues/{kind}", body=body)
    limited = "" if queue["concurrency"] is None else f", at most {queue['concurrency']} at once"
    click.echo(
        f"{kind} is {_state(queue)}{limited}: {_pending(queue)} pending, {queue['processing']} running."
    )


def _state(queue: dict[str, Any]) -> str:
    if not queue["paused"]:
        return "open"
    return f"paused ({queue['paused_why']})" if queue["paused_why"] else "paused"


def _pending(queue: dict[str, Any]) -> str:
    return f"~{queue['pending']}" if queue["is_estimate"] else str(queue["pending"])


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )


def _limit(concurrency: int | None) -> str:
    return "none" if concurrency is None else str(concurrency)


def _escape(text: str) -> str:
    from rich.markup import escape

    return str(escape(text))
