from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

from bench.campaign import Failure, Record
from bench.report import BARE, OURS, Report, draw_picture, write_markdown

DRAINS = {
    OURS: (40_000, 50_000, 45_000),
    "graphile": (20_000, 40_000, 30_000),
    BARE: (100_000, 100_000, 100_000),
}


def make_report() -> Report:
    drains = [
        Record(
            "drain", "watermark, overlapping" if name == BARE else "", name, number,
            {"jobs_s": rate, "worker_us": 12.5, "postgres_us": 9.0},
        )
        for name, rates in DRAINS.items()
        for number, rate in enumerate(rates)
    ]  # fmt: skip
    others = [
        Record("full", "empty", OURS, 0, {"jobs_s": 50_000}),
        Record("full", "1,000,000 finished", OURS, 0, {"jobs_s": 48_000}),
        Record("pickup", "by SQL", OURS, 0, {"p50": 0.812, "p95": 1.5, "p99": 2.4}),
        Record("pickup", "by HTTP", OURS, 0, {"p50": -0.1, "p95": 1.5, "p99": 2.0}),
        Record("http", "created, to run later, 50", OURS, 0, {"jobs_s": 9_000, "p50": 4, "p99": 9.5}),
        Record("http", "group commit, 50", BARE, 0, {"jobs_s": 12_000, "p50": 4, "p99": 7.5}),
    ]
    return Report(
        records=[*drains, *others],
        failures=[Failure("sustained", "", "graphile", "TimeoutError")],
        skipped={"oban": "pip: needs a newer Python"},
        titles={OURS: "listingd", "graphile": "graphile-worker", BARE: BARE},
        versions={OURS: "asyncpg 0.32", "graphile": "graphile-worker 0.18"},
        settings={OURS: "workers 500", "graphile": "localQueue 2000"},
        facts={"processor": "<two> cores & more"},
        jobs=20_000,
    )


def find_row(page: str, start: str) -> list[str]:
    row = next(line for line in page.splitlines() if line.startswith(start))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_cell_is_the_median_with_the_lowest_and_the_highest():
    row = find_row(write_markdown(make_report()), "| graphile-worker |")

    assert row[1] == "30,000 [20,000–40,000]"


def test_a_ratio_is_taken_round_by_round():
    """Noise hits both contestants of a round: the median of 2 and 1.25, not of all drains."""
    report = replace(
        make_report(), records=[r for r in make_report().records if (r.contestant, r.round) != (OURS, 2)]
    )

    assert report.ratio("drain", "", OURS, against="graphile", of_case="") == "1.62"


def test_what_failed_and_what_was_left_out_stands_in_the_page_with_its_reason():
    page = write_markdown(make_report())

    assert find_row(page, "| graphile-worker |")[4] == "failed"
    assert "| sustained | – | graphile-worker | TimeoutError |" in page
    assert "- oban: pip: needs a newer Python" in page


def test_what_was_not_measured_is_a_dash():
    assert find_row(write_markdown(make_report()), "| listingd |")[4] == "–"


def test_the_warning_stands_before_the_first_table():
    page = write_markdown(replace(make_report(), warning="The machine was busy."))

    assert 0 < page.index("The machine was busy.") < page.index("| --- |")


def test_the_picture_is_an_svg_with_every_contestant_within_its_edges():
    root = ET.fromstring(draw_picture(make_report()))

    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {
        "listingd",
        "graphile-worker",
        "hand-written: watermark",
        "1,000,000 finished",
        "listingd by SQL",
    } <= texts
    for bar in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(bar.get("x", 0)) + float(bar.get("width", 0)) <= float(root.get("width", 0))


def test_the_picture_of_no_measurement_is_still_an_svg():
    ET.fromstring(draw_picture(replace(make_report(), records=[])))
