"""The pre-check of listing texts finds what Amazon refuses and leaves honest sentences alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from daemon.amazon.policy import PATTERNS, check_text

RULES = Path(__file__).parents[3] / "shared" / "data" / "amazon_rules.json"

REFUSED = {
    "price": ("Only $19.99", "19.99 € today", "Costs 20 dollars", "USD 5", "₺500", "19,99 zł"),
    "promo": (
        "Free shipping", "20 % off", "20% off", "A special  offer", "An affordable chair", "Discounts and coupons",
    ),
    "call_to_action": ("Buy now!", "Add to cart", "Order today"),
    "guarantee": ("Lifetime warranty", "Satisfaction guaranteed", "money-back"),
    "superlative": ("The #1 chair", "Best-selling bottle", "world's best"),
    "competitor": ("Unlike other brands, it holds", "Beats competitors"),
    "contact": (
        "See https://x.example", "Visit www.acme", "Write to a.b@acme.example", "+49 30 1234567 89",
        "Scan the QR code", "More at acme-chairs.com", "Visit Acme.Com", "See acme.it", "Call (030) 123 456",
    ),
    "testimonial": ("Customers love it", "4.5 stars", "Great reviews"),
    "health": ("Clinically proven", "Anti bacterial coat", "It cures colds", "Treats back pain",
               "Prevents a dry and itchy skin", "Heals fast"),
    "seller_authority": ("From an authorised dealer",),
    "html": ("<b>Strong</b>", "<script>alert(1)</script>", "Salt &amp; pepper", "Caf&Eacute;", "&#x3C;b&#x3E;"),
}  # fmt: skip
WARNED = {
    "time": ("Our latest model", "For Christmas"),
    "health": ("Gourmet dog treats", "The base prevents sliding", "A resin that cures in the sun"),
    "eco": ("Eco-friendly bamboo",),
    "symbols": ("Acme™ chair", "Acme® chair"),
    "allcaps": ("STRONG STEEL FRAME INSIDE",),
}


@pytest.mark.parametrize(("rule", "text"), [(r, t) for r, ts in REFUSED.items() for t in ts])
def test_refused_wording_is_a_fail(rule: str, text: str) -> None:
    found = {finding.id: finding for finding in check_text(text, "/a/0")}

    assert rule in found
    assert "fail" == found[rule].severity
    assert "/a/0" == found[rule].pointer


@pytest.mark.parametrize(("rule", "text"), [(r, t) for r, ts in WARNED.items() for t in ts])
def test_doubtful_wording_is_a_warning(rule: str, text: str) -> None:
    found = {finding.id: finding.severity for finding in check_text(text)}

    assert "warn" == found[rule]
    assert "fail" not in found.values()


@pytest.mark.parametrize(
    "text",
    [
        "Solid oak legs carry up to 120 kg.",
        "Measures 30 × 20 × 10 cm.",
        "Fits a 13-inch laptop and A4 paper.",
        "Double-wall steel keeps drinks cold for 24 hours.",
        "Renewed comfort, newton metres and icon.s",
        "USB-C, HDMI 2.1 and NVMe.",
        "Dishwasher safe at 65 °C (top rack).",
        "Easy to clean.It has a lid.",
        "Aus Eiche.Es steht fest.",
        "Fits a waist of 75-90 (30-35 in).",
    ],
)
def test_honest_sentence_passes(text: str) -> None:
    assert () == check_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "+49 170 1234567", "+49 (0)170 123 45 67", "+1 (555) 123-4567", "+1.555.123.4567", "0049 170 1234567",
        "(555) 123-4567", "555-123-4567", "555.123.4567", "1-800-356-9377", "1 (800) 356-9377", "1-800-FLOWERS",
        "1-800-GO-FEDEX", "0800 123 456", "0170/1234567", "01701234567", "030-123-4567", "020 7946 0958",
        "01 23 45 67 89", "01.23.45.67.89", "Tel. 1234567", "Call us at 5551234", "Hotline: 123 456", "Phone: 5551234",
        "WhatsApp 491701234567", "call 1 2 3 4 5 6 7",
    ],
)  # fmt: skip
def test_telephone_number_is_found_in_every_spelling(text: str) -> None:
    assert [("contact", "fail")] == [(finding.id, finding.severity) for finding in check_text(text)]


@pytest.mark.parametrize("text", ["612 345 678", "600-123-456"])
def test_nine_digits_in_threes_may_be_a_telephone_number(text: str) -> None:
    """As Spain and Poland write them, and some catalogue numbers."""
    assert [("contact", "warn")] == [(finding.id, finding.severity) for finding in check_text(text)]


@pytest.mark.parametrize(
    "text",
    [
        "EAN 4006381333931", "4006381333931", "GTIN 04006381333931", "UPC 036000291452", "ISBN 978-3-16-148410-0",
        "ISBN 0306406152", "Part number 0123456789", "Replaces 123456789 and B07ABCD123", "OEM no. 030 115 561 AN",
        "Fits 2019-2020 2021-2022", "Models 2015 2016 2017 2018", "1000 x 2000 x 300 mm", "1000 2000 300 mm",
        "Sizes 36-37 38-39 40-41 42-43", "100-240 V, 50-60 Hz", "Lasts 100 000 000 strokes", "-20 to +40 °C",
        "Phone 12 13 14 15 16 case", "Fits iPhone 11-12 13-14 15-16", "0-6 6-12 12-18 18-24 months", "Call bell",
        "Serial 1234567890123456", "Weighs 0.5 1.0 1.5 2.0 kg",
    ],
)  # fmt: skip
def test_digits_of_other_kinds_are_no_telephone_number(text: str) -> None:
    assert () == check_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "www dot example dot com", "Find us at example dot com", "example (dot) com", "example [dot] shop",
        "mail (at) example.org", "info [at] example dot de", "example dot co dot uk", "acme dotcom", "acme . com",
        "acme. com", "beispiel punkt de", "WWW DOT ACME DOT NET",
    ],
)  # fmt: skip
def test_spelt_out_address_is_a_link(text: str) -> None:
    assert [("contact", "fail")] == [(finding.id, finding.severity) for finding in check_text(text)]


@pytest.mark.parametrize(
    "text",
    [
        "A polka dot dress", "Polka dot co-ord set", "Swiss dot net fabric", "Red dot sight", "A dot commands attention",
        "Look (at home) and rest", "Comes with a dot. Complete set",
    ],
)  # fmt: skip
def test_dots_of_other_kinds_are_no_link(text: str) -> None:
    assert () == check_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "Buy\u200b now",
        "Ｂｕｙ ｎｏｗ",
        "Buy\n\tnow",
        "W\u00adarranty",
        "W\u0430rranty",
        "\u0392uy n\u043ew",
        "B\u0332u\u0332y\u0332 n\u0332ow",
        "Buy\ufe0f now",
        "Money\u2011back",
        "Best\u2013selling",
        "Call 030\u2011123\u20114567",
    ],
)
def test_disguised_letters_are_read_as_shown(text: str) -> None:
    """Zero-width characters, full-width letters and those of other scripts are the usual ways around a filter.

    Hyphens that do not break come from any word processor.
    """
    assert "fail" in {finding.severity for finding in check_text(text)}


def test_finding_becomes_a_check_with_pointer() -> None:
    (finding,) = check_text("Buy now", "/contentDocument/name")

    shown = finding.as_check().as_json()

    assert "policy.call_to_action" == shown["rule"]
    assert "fail" == shown["outcome"]
    assert "/contentDocument/name" == shown["pointer"]


@pytest.mark.skipif(not RULES.exists(), reason="../shared/data is absent")
def test_every_collected_pattern_has_ours_of_equal_severity() -> None:
    """Our patterns may find more than the collected ones, never less."""
    collected = json.loads(RULES.read_text())["forbidden_text_patterns"]
    ours = {
        pattern.id: pattern
        for pattern in sorted(PATTERNS, key=lambda pattern: pattern.severity, reverse=True)
    }
    samples = [text for texts in (*REFUSED.values(), *WARNED.values()) for text in texts]

    for theirs in collected:
        assert theirs.get("severity", "fail") == ours[theirs["id"]].severity
        for text in samples:
            if re.search(theirs["re"], text):
                assert theirs["id"] in {finding.id for finding in check_text(text)}
