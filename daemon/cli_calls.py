"""What the commands that talk to a running service share: the option --url, one call, one client."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from daemon.cli_options import read_settings, run_async

if TYPE_CHECKING:
    from daemon.client import Client

T = TypeVar("T")

url_option: Callable[[Callable[..., T]], Callable[..., T]] = click.option(
    "--url", help="URL of the service; LISTINGD_URL, else the settings' own address."
)
json_option: Callable[[Callable[..., T]], Callable[..., T]] = click.option(
    "--json", "as_json", is_flag=True, help="The service's JSON instead of text."
)


def with_service(config: Path | None, url: str | None, act: Callable[[Client], Awaitable[T]]) -> T:
    """The result of `act(client)` on the service of the settings. Errors: those of find_target and Client."""
    from daemon.client import find_target, open_client

    target = find_target(read_settings(config), url=url)

    async def run() -> T:
        async with open_client(target) as client:
            return await act(client)

    return run_async(run())


def call_service(
    config: Path | None,
    url: str | None,
    method: str,
    path: str,
    *,
    body: Any = None,
    query: dict[str, str] | None = None,
) -> Any:
    """One call of the HTTP API; its JSON."""
    return with_service(config, url, lambda client: client.call(method, path, body=body, query=query))


def print_json(value: Any) -> None:
    """Indented JSON on stdout, for people and for jq."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def read_input(given: str) -> dict[str, Any]:
    """The object that --input stands for: JSON, @FILE, or - for stdin. Errors: click.BadParameter."""
    try:
        if given == "-":
            given = sys.stdin.read()
        elif given.startswith("@"):
            given = Path(given[1:]).read_text(encoding="utf-8")
        wanted = json.loads(given)
    except OSError as exc:
        raise click.BadParameter(
            f"{given[1:]} cannot be read: {exc.strerror}.", param_hint="--input"
        ) from exc
    except ValueError as exc:
        raise click.BadParameter(f"This is no JSON: {exc}.", param_hint="--input") from exc
    if not isinstance(wanted, dict):
        raise click.BadParameter("The input must be a JSON object.", param_hint="--input")
    return wanted
