"""The prompt files of daemon/prompts: one prompt a file, "version: N" on its first line.

A changed prompt is another version by itself, because the hash of its text belongs to the version, and the
version is part of a step's identity: a result that an older prompt made is never reused for a newer one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import string
from dataclasses import dataclass
from importlib import resources

_HEADER = re.compile(r"version: (\d+)\n+")


@dataclass(frozen=True, slots=True)
class Prompt:
    """name: the file's, without ".md"; version: "N-" and 12 hex digits; template: text with $placeholders."""

    name: str
    version: str
    template: str

    def fill(self, **words: str) -> str:
        """The prompt with every $placeholder replaced once: a `$` inside a word stays what it is.

        Errors: KeyError when a placeholder is not given.
        """
        return string.Template(self.template).substitute(words)


@functools.cache
def load_prompt(name: str) -> Prompt:
    """The prompt of daemon/prompts/<name>.md, read once a process.

    Errors: ValueError when the file does not begin with its version.
    """
    text = (resources.files("daemon") / "prompts" / f"{name}.md").read_text(encoding="utf-8").strip()
    header = _HEADER.match(text)
    if header is None:
        raise ValueError(f"prompts/{name}.md does not begin with a version line")
    body = text[header.end() :]
    return Prompt(name, f"{header.group(1)}-{hashlib.sha256(body.encode()).hexdigest()[:12]}", body)


def quote_data(marker: str, data: object) -> str:
    """Data as JSON between <marker> and </marker>; no angle bracket can stand in it, so nothing in it can
    end the quotation."""
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return f"<{marker}>{text}</{marker}>"
