"""Bars as an SVG: no library, so that the picture is the same on every machine and small in git."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 860
_LEFT, _RIGHT, _ROW, _TITLE, _GAP = 320, 140, 26, 44, 22
_COLOURS = {"own": "#0f62a8", "peer": "#8a97a6", "bare": "#d3d9e0"}
_TEXT = "#1c2733"
_FAINT = "#5c6975"


@dataclass(frozen=True, slots=True)
class Bar:
    """role: own, peer or bare. reach: the end of the thin line, such as a p99 or the best run; none without."""

    label: str
    value: float
    text: str
    role: str
    reach: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    note: str
    bars: list[Bar]


def draw(panels: list[Panel]) -> str:
    """An SVG document with the panels one below the other."""
    shown = [panel for panel in panels if panel.bars]
    height = sum(_TITLE + len(panel.bars) * _ROW + _GAP for panel in shown) + _GAP
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
            ' font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="13">'
        ),
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    top = _GAP
    for panel in shown:
        parts += _draw_panel(panel, top)
        top += _TITLE + len(panel.bars) * _ROW + _GAP
    return "\n".join([*parts, "</svg>", ""])


def _draw_panel(panel: Panel, top: float) -> list[str]:
    parts = [
        _write(16, top + 14, panel.title, size=15, weight=600),
        _write(16, top + 32, panel.note, colour=_FAINT, size=12),
    ]
    longest = max(max(bar.value, bar.reach or 0.0) for bar in panel.bars) or 1.0
    scale = (WIDTH - _LEFT - _RIGHT) / longest
    for number, bar in enumerate(panel.bars):
        y = top + _TITLE + number * _ROW
        width, middle = max(1.0, bar.value * scale), y + (_ROW - 6) / 2
        end = _LEFT + width
        weight = 600 if bar.role == "own" else 400
        parts.append(_write(_LEFT - 10, middle + 4, bar.label, anchor="end", weight=weight))
        parts.append(
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_ROW - 6}" rx="2" fill="{_COLOURS[bar.role]}"/>'
        )
        if bar.reach is not None and bar.reach > bar.value:
            reach = _LEFT + bar.reach * scale
            parts.append(
                f'<path d="M{end:.1f} {middle}H{reach:.1f}M{reach:.1f} {middle - 5}v10" stroke="{_FAINT}" fill="none"/>'
            )
            end = reach
        parts.append(_write(end + 8, middle + 4, bar.text, weight=weight))
    return parts


def _write(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    colour: str = _TEXT,
    size: int = 13,
    weight: int = 400,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}"'
        f' font-weight="{weight}">{escape(text)}</text>'
    )
