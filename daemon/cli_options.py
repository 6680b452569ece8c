"""What the commands share: settings from --config, errors as two plain lines, an event loop.

Everything heavy is imported inside functions: `listingd --help` must answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from daemon.errors import ListingdError
    from daemon.settings import Settings

T = TypeVar("T")

EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2


class Commands(click.Group):
    """A group whose commands may raise ListingdError: message and hint on stderr, no stack trace.

    Exit code 2 when the operator must change something, else 1.
    """

    def invoke(self, ctx: click.Context) -> Any:
        from daemon.errors import ListingdError

        try:
            return super().invoke(ctx)
        except ListingdError as exc:
            _fail(ctx, exc)
        except BaseExceptionGroup as group:
            # The task group of a running service wraps what ends it, such as a port in use.
            expected, bugs = group.split(ListingdError)
            if expected is None or bugs is not None:
                raise
            leaf: BaseException = expected
            while isinstance(leaf, BaseExceptionGroup):
                leaf = leaf.exceptions[0]
            assert isinstance(leaf, ListingdError)
            _fail(ctx, leaf)


def _fail(ctx: click.Context, exc: ListingdError) -> NoReturn:
    from daemon.errors import Misconfigured

    click.echo(f"error: {exc.message}", err=True)
    if exc.hint:
        click.echo(f"hint: {exc.hint}", err=True)
    ctx.exit(EXIT_MISCONFIGURED if isinstance(exc, Misconfigured) else EXIT_FAILED)


config_option: Callable[[Callable[..., T]], Callable[..., T]] = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="LISTINGD_CONFIG",
    help="TOML file with settings; the environment is stronger.",
)


def read_settings(config: Path | None, **groups: dict[str, Any] | None) -> Settings:
    """The settings, with command line options laid over them: `read_settings(config, http={"port": 0})`.

    Options that were not given (None) are left out. Errors: Misconfigured.
    """
    from daemon.settings_sources import load_settings

    overrides = {}
    for group, values in groups.items():
        if given := {name: value for name, value in (values or {}).items() if value is not None}:
            overrides[group] = given
    return load_settings(config, **overrides)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new uvloop event loop."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
