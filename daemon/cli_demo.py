"""The command `listingd demo`."""

from __future__ import annotations

from pathlib import Path

import click

from daemon.cli_options import config_option, read_settings, run_async

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("photo", required=False, type=_FILE)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("listingd-demo"),
    show_default=True,
    help="Folder for the listing; what an earlier demo made there is removed.",
)
@click.option("--facts", type=_FILE, help="JSON with the product's facts; see examples/sample_product.json.")
@config_option
def demo(photo: Path | None, out: Path, facts: Path | None, config: Path | None) -> None:
    """Make a listing from PHOTO and show it: six pictures, A+ content, a page, a zip.

    Starts everything itself, with a Postgres of its own, and stops it again. Without PHOTO a sample is used.
    Provider keys of the environment are used; without them the offline providers do the work.
    """
    settings = read_settings(config)

    from asyncio import CancelledError

    from rich.console import Console

    from daemon.demo import plan_settings, read_subject, run_demo

    subject = read_subject(photo, facts, max_bytes=settings.http.max_upload_bytes)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width: do not fold names
    try:
        completed = run_async(run_demo(plan_settings(settings), subject, out, console))
    except (KeyboardInterrupt, CancelledError):
        click.echo("\nStopped; nothing is left running.", err=True)
        raise click.exceptions.Exit(130) from None
    if not completed:
        raise click.exceptions.Exit(1)
