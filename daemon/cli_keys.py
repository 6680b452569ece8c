"""The commands `listingd keys create|list|rotate|revoke`: service keys, through the running service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from daemon.cli_options import config_option, read_settings, run_async

if TYPE_CHECKING:
    from daemon.client import Target

url_option = click.option("--url", help="URL of the service; LISTINGD_URL, else the settings' own address.")


@click.group()
def keys() -> None:
    """Make, list, replace and end service keys."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(["enqueue", "read", "admin"]),
    default=("enqueue", "read"), show_default=True, help="What it may do; give it several times.",
)  # fmt: skip
@click.option("--expires-at", help="RFC 3339 time after which it ends, such as 2027-01-01T00:00:00Z.")
@url_option
@config_option
def create(
    name: str, scopes: tuple[str, ...], expires_at: str | None, url: str | None, config: Path | None
) -> None:
    """Make a key called NAME and print its token, this once."""
    body = {"name": name, "scopes": list(scopes)} | ({"expires_at": expires_at} if expires_at else {})
    _print_token(_call(config, url, "POST", "/v1/admin/keys", body))


@keys.command("list")
@url_option
@config_option
def list_keys(url: str | None, config: Path | None) -> None:
    """List the keys, newest first."""
    rows = [
        (
            key["id"], key["name"], ",".join(key["scopes"]), key["created_at"], key["last_used_at"] or "never",
            _describe_end(key),
        )
        for key in _call(config, url, "GET", "/v1/admin/keys")["data"]
    ]  # fmt: skip
    table = [("ID", "NAME", "SCOPES", "CREATED", "LAST USED", "ENDS"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
@click.argument("key_id")
@click.option("--overlap-s", type=int, default=86_400, show_default=True, help="Seconds the old key goes on.")
@url_option
@config_option
def rotate(key_id: str, overlap_s: int, url: str | None, config: Path | None) -> None:
    """Replace the key KEY_ID by a new one and print its token, this once."""
    path = f"/v1/admin/keys/{quote(key_id, safe='')}/rotate"
    _print_token(_call(config, url, "POST", path, {"overlap_s": overlap_s}))


@keys.command()
@click.argument("key_id")
@url_option
@config_option
def revoke(key_id: str, url: str | None, config: Path | None) -> None:
    """End the key KEY_ID now; streams that it opened end within a minute."""
    key = _call(config, url, "DELETE", f"/v1/admin/keys/{quote(key_id, safe='')}")
    click.echo(f"{key['id']} ({key['name']}) is revoked.")


def _print_token(key: dict[str, Any]) -> None:
    """The token alone on stdout, so that a script can take it."""
    click.echo(
        f"{key['id']} ({key['name']}): {', '.join(key['scopes'])}. Keep the token, it is not shown again.",
        err=True,
    )
    click.echo(key["token"])


def _describe_end(key: dict[str, Any]) -> str:
    if key["revoked_at"]:
        return f"revoked {key['revoked_at']}"
    return key["expires_at"] or "never"


def _call(config: Path | None, url: str | None, method: str, path: str, body: Any = None) -> Any:
    from daemon.client import find_target

    return run_async(_send(find_target(read_settings(config), url=url), method, path, body))


async def _send(target: Target, method: str, path: str, body: Any) -> Any:
    from daemon.client import open_client

    async with open_client(target) as client:
        return await client.call(method, path, body=body)
