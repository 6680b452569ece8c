"""Live tests call real providers and cost a few cents. Each runs only when its key is set."""

from __future__ import annotations

import os

import pytest

# The root conftest takes keys out of the environment before each test; these are read before that.
KEYS = {name: os.environ.get(name, "") for name in ("OPENAI_API_KEY", "REMOVE_BG_API_KEY", "GEMINI_API_KEY")}


@pytest.fixture
def openai_key() -> str:
    return _key("OPENAI_API_KEY")


@pytest.fixture
def remove_bg_key() -> str:
    return _key("REMOVE_BG_API_KEY")


@pytest.fixture
def gemini_key() -> str:
    return _key("GEMINI_API_KEY")


def _key(name: str) -> str:
    if not KEYS[name]:
        pytest.skip(f"{name} is not set: the real provider is not called")
    return KEYS[name]
