"""Words that Amazon refuses in listing texts, found before Amazon finds them. No I/O.

A pre-check in English, not Amazon's own filter: what passes here may still be refused there. It serves
every text a shopper reads: A+ modules, alt texts, callouts drawn on pictures.

Source: Amazon Seller Central, "A+ Content guidelines" and "Product image requirements", read 2026-11-23.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from daemon.amazon.checks import Check

Severity = Literal["fail", "warn"]
EXCERPT_LENGTH = 60


@dataclass(frozen=True, slots=True)
class Pattern:
    """A kind of wording that is not allowed; `why` completes "The text must not …".

    One id may stand twice: for what is sure, and for what is in doubt.
    """

    id: str
    expression: re.Pattern[str]
    why: str
    severity: Severity = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One forbidden wording in one text.

    id: the pattern's; excerpt: the matched words, shortened; pointer: where the text stands (JSON pointer
    or any name the caller gave).
    """

    id: str
    severity: Severity
    excerpt: str
    pointer: str
    why: str

    def as_check(self) -> Check:
        """The finding as a check named `policy.<id>`."""
        return Check(
            rule=f"policy.{self.id}",
            outcome=self.severity,
            measured=self.excerpt,
            detail=f"The text must not {self.why}: “{self.excerpt}”.",
            pointer=self.pointer,
        )


def _words(*alternatives: str) -> re.Pattern[str]:
    """Whole words or phrases, whatever the case and the white space between them."""
    joined = "|".join(alternatives).replace(" ", r"\s+")
    return re.compile(rf"\b(?:{joined})\b", re.IGNORECASE)


# Letters of other scripts that look like Latin ones.
_LOOKALIKES = str.maketrans(
    "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0456\u0458\u0455\u04bb\u0501\u051b\u051d"  # Cyrillic
    "\u0410\u0412\u0421\u0415\u041a\u041c\u041d\u041e\u0420\u0422\u0425\u0423\u0406\u0408\u0405"
    "\u03b1\u03b9\u03ba\u03bd\u03bf\u03c1\u03c5"  # Greek
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
    "aceopxyijshdqwABCEKMHOPTXYIJSaikvopuABEZHIKMNOPTYX",
)
_SURE_DOMAINS = "com|net|org|info|biz"
# Words too, some of them: "Easy to clean.It has a lid" only lacks a space.
_DOMAINS = "io|co|shop|store|online|site|app|dev|me|eu|de|fr|it|es|nl|pl|se|uk|us|ca|cn"
_ADDRESS = (
    r"https?://|www\.|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.]+\b"
    rf"|(?<![a-z0-9-])[a-z0-9-]{{2,}}\.(?:{_SURE_DOMAINS}|(?!(?-i:[A-Z][a-z]))(?:{_DOMAINS}))\b"
)
# Not every domain after a bare "dot": polka dots come as co-ord sets, and on net.
_SPELT_OUT = (
    r"\bwww[\s\[({]+(?:dot|punkt)\b"
    r"|\w\s?[\[({]\s?(?:dot|punkt)\s?[\])}]\s?[a-z]{2}|\w\s?[\[({]\s?at\s?[\])}]\s?\w"
    r"|\b\w{2,30}\s+(?:dot\s?com|dot\s+(?:org|biz|de|eu|fr|co\s+dot\s+uk)|punkt\s+(?:com|org|de|at|ch|eu))\b"
    r"|\b\w{2,30}\s?\.\s?com\b"
)
# Digits alone make no telephone number: article numbers (an EAN has 13), years and sizes in a row are not.
_BETWEEN = "[ ()/.-]{0,3}"
_APART = r"(?<![\w.,/+-])"
_NUMBERED = "".join(
    rf"(?<!{name}{mark})"
    for name in ("ean", "gtin", "upc", "isbn", "sku", "oem", "no", r"no\.", "nr", r"nr\.", "number", "model", "part",
                 "item", "article", "code", "serial")
    for mark in (" ", ": ")
)  # fmt: skip
_NO_MEASURE = r"(?![\w.,-]*\d)(?!\s?(?:[cm]?m|k?g|m?l|in|inch(?:es)?|ft)\b)"
_TELEPHONE = "|".join((
    # +49 170 1234567, 0049 170 1234567
    rf"(?:(?<!\w)\+\(?[1-9]|{_APART}00(?=[1-9]\d{{0,2}}[ ()/.-]))(?:{_BETWEEN}\d){{7,}}",
    # 0800 123 456, (030) 123 456, 01 23 45 67 89; in one piece 10 or 11 digits: UPC and GTIN have 12 to 14
    rf"{_APART}{_NUMBERED}(?=\(?0[1-9])(?=(?:{_BETWEEN}\d){{9}})\(?\d{{2,6}}(?:[ ()/.-]{{1,3}}\d{{2,}})+",
    rf"{_APART}{_NUMBERED}0[1-9]\d{{8,9}}(?!\w)",
    # (555) 123-4567, 1-800-356-9377, 1-800-FLOWERS
    rf"{_APART}(?:1[ .-]?)?(?:\([2-9]\d\d\)[ .-]?|[2-9]\d\d[ .-])\d{{3}}[ .-]\d{{4}}{_NO_MEASURE}",
    rf"{_APART}1[ -]8(?:00|33|44|55|66|77|88)[ -](?-i:[A-Z]{{2}})",
    # said to be one
    (r"\b(?:call(?: us)?(?: at| on| now)?|dial|hotline|whatsapp|fax|tel(?:efon|ephone)?(?:\.? (?:no|nr|number))?"
    rf"|(?:phone|mobile|cell)(?: (?:no|nr|number)| ?(?=:)))[ .:]{{1,4}}\+?\(?\d(?:{_BETWEEN}\d){{5,}}"),
))  # fmt: skip
_REMEDIES = "cures?|treats?|prevents?"
# What is cured: without it, "prevents" is said of leaks and scratches, and "treats" of a dog's.
_AILING = (
    r"(?: [\w'-]+){0,4}? (?:"
    r"diseases?|illness(?:es)?|sickness|infections?|inflammations?|injur(?:y|ies)|pains?|\w*aches?|acne"
    r"|colds|flu|fevers?|coughs?|cancers?|tumou?rs?|diabetes|\w+itis|allerg(?:y|ies)|asthma|eczema|psoriasis"
    r"|anxiety|depression|insomnia|migraines?|cramps?|nausea|snoring|wounds?|burns?|blisters?|bruis(?:es?|ing)"
    r"|rash(?:es)?|wrinkles?|scars?|warts?|hair loss|cavities|virus(?:es)?|bacteria|germs?|fungus|skin"
    r"|disorders?|symptoms?|blood pressure|obesity)"
)

PATTERNS: tuple[Pattern, ...] = (
    Pattern(
        "price",
        re.compile(
            r"[$€£¥₹₺]\s?\d|\d\s?[$€£¥₹₺]"
            r"|\b\d+(?:[.,]\d{2})?\s?(?:usd|eur|gbp|chf|pln|zł|kr|dollars?|euros?)\b|\b(?:usd|eur|gbp)\s?\d",
            re.IGNORECASE,
        ),
        "name a price",
    ),
    Pattern(
        "promo",
        re.compile(
            r"\b(?:free\s+shipping|on\s+sale|discount(?:s|ed)?|coupons?|bargains?|cheap(?:er|est)?"
            r"|affordable|best\s+(?:price|deal)s?|limited[-\s]time|special\s+offers?|bonus|gift\s+with)\b|%\s*off\b",
            re.IGNORECASE,
        ),
        "advertise an offer or a bargain",
    ),
    Pattern(
        "call_to_action",
        _words("buy now", "add to cart", "shop (?:now|with us)", "order (?:now|today)", "get yours"),
        "tell the shopper to buy",
    ),
    Pattern(
        "guarantee",
        _words(
            "guarantee[ds]?", "guaranteed", "warrant(?:y|ies)", r"money[-\s]back", "refund(?:s|able)?",
            "return policy",
        ),
        "promise a guarantee, warranty or refund",
    ),
    Pattern(
        "superlative",
        re.compile(
            r"#\s?1\b|\b(?:best[-\s]?sell(?:er|ing)s?|top[-\s]rated|number\s+one|no\.?\s?1|world['\u2019]?s\s+best)\b",
            re.IGNORECASE,
        ),
        "claim a rank that nobody can prove",
    ),
    Pattern(
        "time",
        _words(
            "new(?:est)?", "latest", "now available", "just launched", "currently",
            "this (?:week|month|season)", "christmas", "black friday", "prime day",
        ),
        "bind itself to a time",
        "warn",
    ),
    Pattern(
        "competitor",
        _words(
            "unlike (?:other|competing) brands?", "other brands?", "competitors?",
            "compared to (?:the )?leading",
        ),
        "speak of other sellers' products",
    ),
    Pattern(
        "contact",
        re.compile(f"{_ADDRESS}|{_SPELT_OUT}|{_TELEPHONE}|\\bQR[-\\s]?codes?\\b", re.IGNORECASE),
        "carry a link, an e-mail address, a phone number or a QR code",
    ),
    Pattern(
        "contact",
        re.compile(rf"{_APART}[5-9]\d\d([ .-])\d{{3}}\1\d{{3}}{_NO_MEASURE}"),
        "carry what may be a phone number",
        "warn",
    ),
    Pattern(
        "testimonial",
        re.compile(
            r"\b(?:customers?\s+(?:say|love|agree)s?|reviews?|testimonials?|\d(?:\.\d)?[-\s]stars?)\b",
            re.IGNORECASE,
        ),
        "quote customers, reviews or stars",
    ),
    Pattern(
        "health",
        _words(
            rf"(?:{_REMEDIES}){_AILING}", "heals?", "clinically proven", r"FDA[-\s]approved",
            r"anti[-\s]?(?:bacterial|microbial|viral|fungal)s?",
        ),
        "claim an effect on health",
    ),
    Pattern("health", _words(rf"(?:{_REMEDIES})\b(?!{_AILING}\b)"), "sound like a claim on health", "warn"),
    Pattern(
        "eco",
        _words(r"eco[-\s]?friendly", "biodegradable", "compostable", "carbon neutral"),
        "make an environmental claim without proof",
        "warn",
    ),
    Pattern(
        "seller_authority",
        _words("authori[sz]ed (?:dealer|seller|retailer)", "sold only by", "genuine products? from us"),
        "speak about the seller's authority",
    ),
    Pattern("symbols", re.compile("[®™©]"), "carry a lone ®, ™ or ©", "warn"),
    Pattern(
        "html",
        re.compile(r"<[a-zA-Z/!][^>]*>|&(?:[a-zA-Z][a-zA-Z\d]{1,30}|#\d{1,7}|#[xX][\da-fA-F]{1,6});"),
        "contain HTML",
    ),
    Pattern(
        "allcaps",
        re.compile(r"\b[A-Z]{5,}(?:\s+[A-Z]{4,}){2,}\b"),
        "shout in capitals",
        "warn",
    ),
)  # fmt: skip


def check_text(text: str, where: str = "") -> tuple[Finding, ...]:
    """The forbidden wordings in one text, at most one finding a pattern; empty when it is clean.

    Letters in disguise (full-width forms, zero-width characters inside a word, letters of other scripts) are
    read as what they show.
    """
    shown = _as_shown(text)
    findings = []
    for pattern in PATTERNS:
        # The text as it is comes first: normalizing turns ™ into the letters TM.
        match = pattern.expression.search(text) or pattern.expression.search(shown)
        if match:
            excerpt = " ".join(match.group().split())[:EXCERPT_LENGTH]
            findings.append(Finding(pattern.id, pattern.severity, excerpt, where, pattern.why))
    return tuple(findings)


def _as_shown(text: str) -> str:
    """Plain Latin letters, spaces and hyphens for what looks like them; no marks and no invisible characters."""
    plain = unicodedata.normalize("NFKC", text).translate(_LOOKALIKES)
    return "".join(
        "-" if unicodedata.category(ch) == "Pd" else ch
        for ch in plain
        if unicodedata.category(ch) not in ("Cf", "Mn")
    )
