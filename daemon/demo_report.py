"""What a demo says on the terminal at its end: the table of what was made, or why nothing was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from daemon.demo_page import Check, Listing, Timing, format_bytes


def print_table(console: Console, listing: Listing, folder: Path, files: int, total_s: float) -> None:
    """One line a picture, one for the A+ content, and where to look."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("slot", "file", "size", "checks", "seconds"):
        table.add_column(
            heading,
            justify="right" if heading == "seconds" else "left",
            no_wrap=heading != "file",
            overflow="fold",
        )
    for picture in listing.pictures:
        size = f"{max(picture.width_px, picture.height_px)} px {format_bytes(len(picture.data))}"
        table.add_row(
            picture.slot, escape(picture.file_name), size, _count(picture.checks), _seconds(picture.timing)
        )
    aplus = listing.aplus
    size = f"{len(aplus.modules)} modules"
    table.add_row("A+ content", "aplus/document.json", size, _count(aplus.checks), _seconds(aplus.timing))
    console.print()
    console.print(table)
    if listing.made_up:
        console.print(
            "\n[yellow]The facts on these pictures are examples.[/] Give your own with --facts FILE (JSON)."
        )
    console.print(f"\n[green]✓[/] {files} files in {folder}/ and in listing.zip, {total_s:.1f} s in all")
    console.print(f"  open [bold]{escape(str(folder / 'index.html'))}[/]", soft_wrap=True)


def print_failures(console: Console, jobs: Sequence[Mapping[str, Any]]) -> None:
    """Each different reason once, with what failed by it and what to do."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for label, job in _failed(jobs):
        error = job.get("error") or {}
        told = (
            error.get("code", job["state"]),
            error.get("message", "It did not complete."),
            error.get("hint", ""),
        )
        reasons.setdefault(told, []).append(label)
    console.print()
    for (code, message, hint), labels in reasons.items():
        console.print(f"[red]✗ {', '.join(labels)} failed[/] ({escape(code)})")
        console.print(f"  {escape(message)}", highlight=False)
        if hint:
            console.print(f"  [bold]hint:[/] {escape(hint)}", highlight=False)
    console.print("\nNothing was written but the log: a listing is delivered whole or not at all.")


def _failed(jobs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What failed by itself: the items of a pack rather than the pack."""
    for job in jobs:
        items = [item for item in job.get("items") or [] if item["state"] in ("failed", "cancelled")]
        if items:
            yield from ((str(item["slot"]), item) for item in items)
        elif job["state"] != "completed":
            yield ("A+ content" if job["kind"] == "aplus" else job["kind"]), job


def _count(checks: Sequence[Check]) -> str:
    by_outcome = {outcome: sum(c.outcome == outcome for c in checks) for outcome in ("pass", "warn", "fail")}
    parts = [f"[green]{by_outcome['pass']} pass[/]"]
    if by_outcome["warn"]:
        parts.append(f"[yellow]{by_outcome['warn']} warn[/]")
    if by_outcome["fail"]:
        parts.append(f"[red]{by_outcome['fail']} fail[/]")
    return ", ".join(parts)


def _seconds(timing: Timing) -> str:
    return f"{timing.run_s:.1f}"
