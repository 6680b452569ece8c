"""The page of a demo: the photo, the six pictures with their checks, the A+ content, the timings.

One self-contained HTML file: pictures are data URIs, the one script (it gives the A+ frame its height) is
named by its hash in the page's policy, and every word from outside is escaped. The whole files lie beside it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, Self

_SCRIPT = (
    "const f=document.querySelector('iframe'),r=()=>{try{f.style.height="
    "f.contentDocument.documentElement.scrollHeight+2+'px'}catch{}};f.addEventListener('load',r);"
    "addEventListener('resize',r);r()"
)
_TITLES = {
    "main": "Main image", "angle": "Another angle", "lifestyle": "Lifestyle", "infographic": "Infographic",
    "detail": "Close-up", "dimensions": "Dimensions", "in_the_box": "In the box", "aplus": "A+ content",
}  # fmt: skip
_MARKS = {"pass": "✓", "warn": "!", "fail": "✗"}
_SHARES = frozenset({"product_fill", "product_visible", "background_white"})


@dataclass(frozen=True, slots=True)
class Check:
    """One check as the API shows it."""

    rule: str
    outcome: str
    measured: Any
    limit: Any
    detail: str

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls(
            raw["rule"], raw["outcome"], raw.get("measured"), raw.get("limit"), raw.get("detail") or ""
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """When a job was created, started and finished."""

    label: str
    created: datetime
    started: datetime
    finished: datetime

    @classmethod
    def of(cls, label: str, job: Mapping[str, Any]) -> Self:
        """Of a job that has completed."""
        created, finished = (datetime.fromisoformat(job[name]) for name in ("created_at", "finished_at"))
        started = datetime.fromisoformat(job["started_at"]) if job["started_at"] else created
        return cls(label, created, started, finished)

    @property
    def run_s(self) -> float:
        return (self.finished - self.started).total_seconds()


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished listing image. data: the file; shown: a smaller rendition for the page."""

    asset: Mapping[str, Any]
    result: Mapping[str, Any]
    data: bytes
    shown: bytes
    timing: Timing

    @property
    def slot(self) -> str:
        return str(self.asset["slot"])

    @property
    def file_name(self) -> str:
        return Path(str(self.asset["file_name"])).name

    @property
    def width_px(self) -> int:
        return int(self.asset["width_px"])

    @property
    def height_px(self) -> int:
        return int(self.asset["height_px"])

    @property
    def checks(self) -> tuple[Check, ...]:
        return tuple(map(Check.of, self.asset["checks"]))


@dataclass(frozen=True, slots=True)
class Aplus:
    """The finished A+ content. files: (name, bytes) of its images; preview: an HTML page."""

    document: Mapping[str, Any]
    raw_checks: Sequence[Mapping[str, Any]]
    provider: str
    files: tuple[tuple[str, bytes], ...]
    preview: bytes
    timing: Timing

    @property
    def modules(self) -> list[str]:
        content = self.document["contentDocument"]["contentModuleList"]
        return [str(module["contentModuleType"]) for module in content]

    @property
    def checks(self) -> tuple[Check, ...]:
        return tuple(map(Check.of, self.raw_checks))


@dataclass(frozen=True, slots=True)
class Listing:
    """All that a demo made. photo: a rendition of the source; photo_size: of the source,
    px; views: how many further photos there were.
    """

    photo_name: str
    photo_size: tuple[int, int]
    photo: bytes
    views: int
    product: Mapping[str, Any]
    made_up: bool
    pictures: tuple[Picture, ...]
    aplus: Aplus
    pack_timing: Timing
    total_s: float

    @property
    def checks(self) -> list[Check]:
        return [check for picture in self.pictures for check in picture.checks] + [*self.aplus.checks]

    @property
    def providers(self) -> list[str]:
        """Who made it, each once."""
        named = [p.asset["provider"] for p in self.pictures] + [self.aplus.provider]
        return list(dict.fromkeys(str(name) for name in named))

    @property
    def has_failed_checks(self) -> bool:
        return any(check.outcome == "fail" for check in self.checks)


def format_bytes(size_bytes: float) -> str:
    """A file's weight as people write it: "718 kB", "2.4 MB"."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"


def render_page(listing: Listing) -> bytes:
    """The page as UTF-8 HTML."""
    title = escape(str(listing.product["title"]))
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    style = (Path(__file__).parent / "demo_page.css").read_text(encoding="utf-8")
    pictures = "\n".join(
        _picture(number, len(listing.pictures), picture) for number, picture in enumerate(listing.pictures, 1)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title} · listingd</title><style>{style}</style></head><body>
<header><div class="bar"><b>listingd</b><nav><a href="#pictures">Pictures</a><a href="#aplus">A+ content</a>
<a href="#timings">Timings</a><a href="listing.zip">listing.zip</a></nav></div>
{_hero(listing, title)}</header>
<main>
<section id="pictures"><h2>{len(listing.pictures)} listing images</h2>
<p class="lead">Each file is named as Amazon wants it and was measured after it was written. Click a picture for the whole file.</p>
{pictures}</section>
{_aplus(listing.aplus)}
{_timings(listing)}
</main>
<footer>Made by <code>listingd demo</code>. The same jobs run over HTTP: <code>listingd serve</code>, then <code>/docs</code>.</footer>
<script>{_SCRIPT}</script></body></html>
""".encode()


def _hero(listing: Listing, title: str) -> str:
    product = listing.product
    width_px, height_px = listing.photo_size
    outcomes = [check.outcome for check in listing.checks]
    warnings = outcomes.count("warn")
    warned = f" · {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    numbers = "".join(
        f"<li><b>{value}</b>{what}</li>"
        for value, what in (
            (len(listing.pictures), "pictures"),
            (len(listing.aplus.modules), "A+ modules"),
            (f"{outcomes.count('pass')}/{len(outcomes)}", f"checks passed{warned}"),
            (f"{listing.total_s:.0f} s", "from photo to listing"),
        )
    )
    notes = ""
    if listing.made_up:
        notes += (
            '<p class="note warn"><b>Example facts.</b> No facts were given with this photo, so title, brand and '
            "bullets are placeholders that say so. Give yours with <code>--facts product.json</code>.</p>"
        )
    if listing.providers == ["offline"]:
        notes += (
            '<p class="note"><b>Made offline.</b> No AI provider key is set, so the built-in image processing and '
            "the rules for texts did this work. With keys the scenes and texts come from the providers.</p>"
        )
    else:
        notes += f'<p class="note"><b>Made with</b> {escape(", ".join(listing.providers))}.</p>'
    bullets = "".join(f"<li>{escape(text)}</li>" for text in product.get("bullets", ()))
    return f"""<div class="hero"><figure><img src="{_uri(listing.photo)}" alt="The photo this was made from">
<figcaption>The photo it began with{_more_views(listing.views)}: {escape(listing.photo_name)}, <span>{width_px} × {height_px} px</span></figcaption></figure>
<div><p class="over">{escape(str(product.get("brand") or "One photo in, a listing out"))}</p><h1>{title}</h1>
<ul class="bullets">{bullets}</ul><ul class="numbers">{numbers}</ul>{notes}</div></div>"""


def _more_views(views: int) -> str:
    return f" (with {views} further view{'s' if views > 1 else ''})" if views else ""


def _picture(number: int, of: int, picture: Picture) -> str:
    asset = picture.asset
    name = escape(picture.file_name)
    title = _TITLES.get(picture.slot, picture.slot)
    tags = [f"<code>{escape(str(picture.result.get('code', '')))}</code>"]
    tags += ["AI-generated surroundings"] if asset["generated"] else []
    tags += [f"provider: {escape(str(asset['provider']))}"] if asset["provider"] else []
    derived = picture.result.get("derived")
    note = f'<p class="derived">{escape(str(derived)[:1].upper() + str(derived)[1:])}.</p>' if derived else ""
    return f"""<article><a class="shot" href="{name}"><img src="{_uri(picture.shown)}" alt="{title}" loading="lazy"></a>
<div class="facts"><p class="over">{number} of {of}</p><h3>{title} {_tally(picture.checks)}</h3>
<p class="tags">{"".join(f"<span>{tag}</span>" for tag in tags)}</p>
<p class="file"><a href="{name}">{name}</a><br>{picture.width_px} × {picture.height_px} px · {format_bytes(len(picture.data))}
 · {picture.timing.run_s:.1f} s</p>{note}{_checks(picture.checks)}</div></article>"""


def _aplus(aplus: Aplus) -> str:
    modules = "".join(
        f"<span><code>{escape(name.removeprefix('STANDARD_'))}</code></span>" for name in aplus.modules
    )
    frame = escape(aplus.preview.decode("utf-8", "replace"))
    return f"""<section id="aplus"><h2>A+ content {_tally(aplus.checks)}</h2>
<p class="lead">A document for Amazon's A+ Content API with {len(aplus.files)} images of its own, as a shopper would see it.
<a href="aplus/document.json">document.json</a> · <a href="aplus/preview.html">preview.html</a></p>
<p class="tags">{modules}<span>texts: {escape(aplus.provider)}</span></p>
<iframe title="A+ preview" sandbox="allow-same-origin" srcdoc="{frame}"></iframe></section>"""


def _timings(listing: Listing) -> str:
    """Bars on a common axis: light while waiting, strong while running."""
    rows = [picture.timing for picture in listing.pictures] + [listing.aplus.timing]
    begin = min(listing.pack_timing.created, *(row.created for row in rows))
    end = max(listing.pack_timing.finished, *(row.finished for row in rows))
    whole_s = max((end - begin).total_seconds(), 0.001)

    def at(when: datetime) -> float:
        return 100 * (when - begin).total_seconds() / whole_s

    lines = "".join(
        f'<tr><th>{_TITLES.get(row.label, row.label)}</th><td class="track">'
        f'<i class="wait" style="left:{at(row.created):.2f}%;width:{at(row.started) - at(row.created):.2f}%"></i>'
        f'<i style="left:{at(row.started):.2f}%;width:{max(0.4, at(row.finished) - at(row.started)):.2f}%"></i></td>'
        f"<td>{row.run_s:.1f} s</td></tr>"
        for row in rows
    )
    first_s = (min(p.timing.created for p in listing.pictures) - begin).total_seconds()
    return f"""<section id="timings"><h2>Timings</h2>
<p class="lead">{whole_s:.1f} s from the first job to the last file; the cut-out, which all pictures share, took the first
{first_s:.1f} s. The jobs run side by side on this machine's processors.</p>
<table class="time"><tbody>{lines}</tbody></table></section>"""


def _checks(checks: Sequence[Check]) -> str:
    rows = "".join(
        f'<tr class="{escape(check.outcome)}"><td><b>{_MARKS.get(check.outcome, "?")}</b></td>'
        f"<td>{escape(_label(check.rule))}<small>{escape(check.detail)}</small></td>"
        f"<td>{escape(_value(check.rule, check.measured))}</td></tr>"
        for check in sorted(checks, key=lambda check: ("fail", "warn", "pass").index(check.outcome))
    )
    return f'<table class="checks"><tbody>{rows}</tbody></table>'


def _tally(checks: Sequence[Check]) -> str:
    counts = {
        outcome: sum(check.outcome == outcome for check in checks) for outcome in ("fail", "warn", "pass")
    }
    return "".join(
        f'<span class="pill {outcome}">{_MARKS[outcome]} {count}</span>'
        for outcome, count in counts.items()
        if count
    )


def _label(rule: str) -> str:
    words = rule.removesuffix("_px").replace("_", " ").replace(".", ": ").replace("exif", "EXIF")
    return words[:1].upper() + words[1:]


def _value(rule: str, value: Any) -> str:
    """A measured value as people write it."""
    if value is None or isinstance(value, bool):
        return ""  # the sentence beside it says it better
    if rule in _SHARES:
        return f"{100 * value:.1f} %"
    if rule.endswith(("size", "bytes")):
        return format_bytes(value)
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value} px" if rule.endswith(("_px", "_pixels")) else str(value)


def _uri(data: bytes) -> str:
    kind = "png" if data[:4] == b"\x89PNG" else "webp" if data[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
