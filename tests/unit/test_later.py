"""Modules that a start does without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from daemon import later
from daemon.later import is_loaded


@pytest.fixture
def heavy(tmp_path, monkeypatch):
    """The name of a module that nobody has imported."""
    (tmp_path / "heavy_for_a_test.py").write_text("WEIGHT = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(later, "_named", {})
    yield "heavy_for_a_test"
    sys.modules.pop("heavy_for_a_test", None)


def test_naming_a_module_does_not_import_it(heavy):
    later.later(heavy)

    assert not is_loaded(heavy)


def test_the_first_use_imports_it(heavy):
    module = later.later(heavy)

    assert module.WEIGHT == 7
    assert is_loaded(heavy)


def test_what_a_test_replaces_in_the_module_is_seen(heavy, monkeypatch):
    module = later.later(heavy)
    assert module.WEIGHT == 7

    monkeypatch.setattr(sys.modules[heavy], "WEIGHT", 8)

    assert module.WEIGHT == 8


def test_load_all_imports_whatever_was_named(heavy):
    later.later(heavy)

    later.load_all()

    assert is_loaded(heavy)


def test_a_hidden_package_is_missing_inside_the_block_alone(heavy):
    with later.without(heavy), pytest.raises(ImportError):
        __import__(heavy)

    assert Path(__import__(heavy).__file__).stem == heavy


def test_a_package_in_memory_is_not_hidden(heavy):
    there = __import__(heavy)

    with later.without(heavy):
        assert __import__(heavy) is there
