"""The prompt files of daemon/prompts: one prompt a file, its version is the hash of its text.

A changed prompt is another version by itself, and the version is part of a step's identity: a result that
an older prompt made is never reused for a newer one.
"""

from __future__ import annotations

import functools
import hashlib
import string
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Prompt:
    """name: the file's, without ".md"; version: 12 hex digits; template: text with $placeholders."""

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
    """The prompt of daemon/prompts/<name>.md, read once a process."""
    text = (resources.files("daemon") / "prompts" / f"{name}.md").read_text(encoding="utf-8").strip()
    return Prompt(name, hashlib.sha256(text.encode()).hexdigest()[:12], text)
