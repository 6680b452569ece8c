"""The commands `listingd enqueue` and `listingd jobs list|show|watch|cancel|retry|explain`, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from daemon.cli_calls import call_service, json_option, print_json, read_input, url_option, with_service
from daemon.cli_options import EXIT_FAILED, config_option

if TYPE_CHECKING:
    from daemon.client import Client

KINDS = ("image", "pack", "aplus", "ping")
STATES = ("pending", "processing", "waiting", "completed", "failed", "cancelled")

_job_id = click.argument("job_id", type=click.UUID, metavar="ID")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--input", "given", default="{}", help="The input as JSON, @FILE, or - for stdin.")
@click.option(
    "--photo",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Upload this file first; it becomes input.photo.",
)
@click.option("--user-id", help="For whom.")
@click.option("--project-id", type=click.UUID)
@click.option("--priority", type=click.IntRange(-100, 100), help="Higher goes first among one user's jobs.")
@click.option("--run-at", help="Not before this time (RFC 3339).")
@click.option("--max-attempts", type=click.IntRange(1, 10))
@click.option("--tag", "tags", multiple=True, help="May be given several times.")
@click.option("--idempotency-key", help="The same key never makes a second job.")
@click.option("--watch", is_flag=True, help="Show its progress until it ends.")
@json_option
@url_option
@config_option
def enqueue(
    kind: str, given: str, photo: Path | None, tags: tuple[str, ...], idempotency_key: str | None, *, watch: bool,
    as_json: bool, url: str | None, config: Path | None, **more: Any,
) -> None:  # fmt: skip
    """Create a job of KIND and print its id."""
    wanted = read_input(given)
    data = _read_photo(photo) if photo else None
    fields = {name: str(value) if isinstance(value, UUID) else value for name, value in more.items()}
    fields = {
        name: value for name, value in (fields | {"tags": list(tags) or None}).items() if value is not None
    }
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None

    async def create(client: Client) -> Any:
        extra = {} if data is None else {"photo": {"upload_id": await client.upload(data)}}
        body = {"kind": kind, "input": wanted | extra, **fields}
        return await client.call("POST", "/v1/jobs", body=body, headers=headers)

    job = with_service(config, url, create)
    if as_json:
        print_json(job)
    else:
        click.echo(job["id"])
    if watch:
        _watch(job["id"], url, config)


@click.group()
def jobs() -> None:
    """Look at jobs and steer them."""


@jobs.command("list")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES), help="May be given several times."
)
@click.option("--kind", type=click.Choice(KINDS))
@click.option("--tag")
@click.option("--project-id", type=click.UUID)
@click.option("--user-id")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@json_option
@url_option
@config_option
def list_jobs(
    states: tuple[str, ...],
    limit: int,
    *,
    as_json: bool,
    url: str | None,
    config: Path | None,
    **filters: Any,
) -> None:
    """List jobs, newest first."""
    query = {name: str(value) for name, value in filters.items() if value is not None}
    query |= {"limit": str(limit)} | ({"state": ",".join(states)} if states else {})
    page = call_service(config, url, "GET", "/v1/jobs", query=query)
    if as_json:
        print_json(page)
        return
    from daemon.progress import describe

    rows = [
        (job["id"], job["kind"], describe(job), f"{job['attempt']}/{job['max_attempts']}", job["user_id"] or "-", job["created_at"])
        for job in page["data"]
    ]  # fmt: skip
    _print_columns(("ID", "KIND", "STATE", "ATTEMPT", "USER", "CREATED"), rows)
    if page["next_cursor"]:
        click.echo(f"… and more: these are the newest {limit}.", err=True)


@jobs.command()
@_job_id
@json_option
@url_option
@config_option
def show(job_id: UUID, *, as_json: bool, url: str | None, config: Path | None) -> None:
    """Show one job: where it is, what it made, why it failed."""
    job = call_service(config, url, "GET", f"/v1/jobs/{job_id}")
    if as_json:
        print_json(job)
        return
    _print_job(job)


@jobs.command()
@_job_id
@url_option
@config_option
def watch(job_id: UUID, *, url: str | None, config: Path | None) -> None:
    """Show a job's progress until it ends. Exit code 0 when it completed."""
    _watch(str(job_id), url, config)


@jobs.command()
@_job_id
@url_option
@config_option
def cancel(job_id: UUID, *, url: str | None, config: Path | None) -> None:
    """Cancel a job and its items; what is finished is kept."""
    job = call_service(config, url, "POST", f"/v1/jobs/{job_id}/cancel")
    stopping = job["state"] not in ("completed", "failed", "cancelled")
    click.echo(f"{job['id']} is {job['state']}" + (", and is being stopped." if stopping else "."))


@jobs.command()
@_job_id
@url_option
@config_option
def retry(job_id: UUID, *, url: str | None, config: Path | None) -> None:
    """Run a failed or cancelled job again; finished items are kept."""
    job = call_service(config, url, "POST", f"/v1/jobs/{job_id}/retry")
    click.echo(f"{job['id']} is {job['state']} again.")


@jobs.command()
@_job_id
@json_option
@url_option
@config_option
def explain(job_id: UUID, *, as_json: bool, url: str | None, config: Path | None) -> None:
    """Say why a job is not running, with the numbers behind it."""
    found = call_service(config, url, "GET", f"/v1/jobs/{job_id}/explain")
    if as_json:
        print_json(found)
        return
    for name, value in _flatten(found):
        click.echo(f"{name:<20} {value}")


def _watch(job_id: str, url: str | None, config: Path | None) -> None:
    from rich.console import Console

    from daemon.progress import JobBars

    async def follow(client: Client) -> dict[str, Any]:
        job: dict[str, Any] = {}
        with JobBars(Console(stderr=True)) as bars:
            async for job in client.watch_job(job_id):
                bars.show(job, job.get("slot") or job["kind"])
        return job

    try:
        job = with_service(config, url, follow)
    except KeyboardInterrupt:
        click.echo(f"The job goes on; see it again with: listingd jobs watch {job_id}", err=True)
        raise click.exceptions.Exit(130) from None
    _print_error(job)
    if job["state"] != "completed":
        raise click.exceptions.Exit(EXIT_FAILED)


def _read_photo(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise click.BadParameter(f"{path} cannot be read: {exc.strerror}.", param_hint="--photo") from exc


def _print_job(job: Mapping[str, Any]) -> None:
    from daemon.progress import describe

    shown: dict[str, Any] = {"id": job["id"], "kind": job["kind"], "state": describe(job)}
    if job["queue_position"] is not None:
        shown["jobs ahead"] = job["queue_position"]
    shown |= {"attempt": f"{job['attempt']} of {job['max_attempts']}", "user": job["user_id"] or "-"}
    names = ("project_id", "created_at", "run_at", "started_at", "finished_at")
    shown |= {name: job[name] for name in names if job[name]}
    if job["tags"]:
        shown["tags"] = ", ".join(job["tags"])
    cost = job["cost"]
    unknown = f", {cost['unknown_calls']} calls of unknown outcome" if cost["unknown_calls"] else ""
    shown["cost"] = f"{cost['actual_usd']} USD{unknown}"
    for name, value in shown.items():
        click.echo(f"{name:<12} {value}")
    for item in job["items"]:
        click.echo(f"item         {item['slot']:<12} {describe(item):<24} {item['id']}")
    for asset in job["assets"]:
        failed = sum(check["outcome"] == "fail" for check in asset["checks"])
        warned = sum(check["outcome"] == "warn" for check in asset["checks"])
        click.echo(
            f"file         {asset['file_name'] or asset['role']}  {asset['bytes']} bytes  "
            f"{len(asset['checks'])} checks, {warned} warn, {failed} fail  {asset['url']}"
        )
    _print_error(job)


def _print_error(job: Mapping[str, Any]) -> None:
    error = job.get("error")
    if not error or job["state"] == "completed":
        return
    click.echo(f"error: {error['message']} ({error['code']})", err=True)
    if error.get("hint"):
        click.echo(f"hint: {error['hint']}", err=True)
    for attempt in error.get("attempts", ()):
        click.echo(
            f"  attempt {attempt['number']}: {attempt['code']}, {attempt['message'] or ''} (paid: {attempt['paid']})",
            err=True,
        )
    for item in job.get("items", ()):
        if item["state"] == "failed" and item["error"]:
            click.echo(f"  {item['slot']}: {item['error']['message']} ({item['error']['code']})", err=True)


def _print_columns(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, part in value.items():
        if isinstance(part, dict):
            rows += _flatten(part, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, "-" if part is None else part))
    return rows
