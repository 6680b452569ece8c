"""Which provider the settings choose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import Misconfigured
from daemon.providers.factory import build_providers, check_models
from daemon.providers.protocols import Providers
from daemon.settings import Settings
from tests.protocol_servers import OpenAIServer
from tests.protocol_servers.samples import paint_request


def settings_with(tmp_path: Path, **groups: Any) -> Settings:
    return Settings(state_dir=tmp_path, **groups)


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer() as running:
        yield running


def test_nothing_configured_is_all_offline(tmp_path: Path) -> None:
    providers = build_providers(settings_with(tmp_path))

    assert ["offline"] * 3 == [providers.cutout.name, providers.paint.name, providers.text.name]


@pytest.mark.parametrize(("sdk", "fingerprint"), [("generativeai", "gemini/1:"), ("genai", "genai/1:")])
def test_keys_choose_the_real_providers(tmp_path: Path, sdk: str, fingerprint: str) -> None:
    groups = {
        "openai": {"api_key": "k"},
        "cutout": {"api_key": "k"},
        "gemini": {"api_key": "k", "sdk": sdk},
    }

    providers = build_providers(settings_with(tmp_path, **groups))

    names = [providers.cutout.name, providers.paint.name, providers.text.name]
    assert ["removebg", "openai", "gemini"] == names
    assert providers.text.fingerprint.startswith(fingerprint)
    assert "api.remove.bg" in providers.cutout.fingerprint


def test_url_alone_is_enough_for_a_cutout_server_of_one_s_own(tmp_path: Path) -> None:
    providers = build_providers(settings_with(tmp_path, cutout={"base_url": "http://carvekit.lan/api"}))

    assert "carvekit.lan" in providers.cutout.fingerprint


@pytest.mark.parametrize("protocol", ["removebg", "rembg", "withoutbg"])
def test_cutout_protocol_without_an_address_is_misconfigured(tmp_path: Path, protocol: str) -> None:
    with pytest.raises(Misconfigured, match="LISTINGD_CUTOUT__"):
        build_providers(settings_with(tmp_path, cutout={"protocol": protocol}))


async def test_shutdown_of_the_configured_model_is_announced(tmp_path: Path, server: OpenAIServer) -> None:
    server.models["gpt-image-1.5"] = "2026-12-01"
    providers = _with_openai(tmp_path, server, model="gpt-image-1.5")

    (notice,) = await check_models(providers)

    assert ("openai", "gpt-image-1.5", date(2026, 12, 1)) == (
        notice.provider,
        notice.model,
        notice.shutdown_on,
    )
    await providers.paint.close()


async def test_prices_of_the_settings_are_used(tmp_path: Path, server: OpenAIServer) -> None:
    """Doubling the price table doubles what the books say."""
    providers = _with_openai(
        tmp_path, server, price_text_in_usd="10", price_image_in_usd="16", price_image_out_usd="60"
    )

    answer = await providers.paint.paint(paint_request(), timeout_s=20)

    assert 2 * server.journal.billed_usd == answer.usage.cost_usd
    await providers.paint.close()


def test_machine_without_keys_loads_no_vendor_s_code() -> None:
    code = (
        "import sys, daemon.providers.factory as f; from daemon.settings import Settings;"
        "f.build_providers(Settings(openai={'api_key': 'k'}, gemini={'api_key': 'k'}));"
        "print([m for m in ('openai', 'google.generativeai', 'google.genai') if m in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )

    assert "[]" == done.stdout.strip()


def test_google_s_farewell_does_not_reach_the_log() -> None:
    """google-generativeai prints a FutureWarning at import."""
    code = (
        "from daemon.providers.gemini import GeminiText; from daemon.providers.gemini_wire import TokenPrices;"
        "GeminiText(api_key='k', base_url='http://127.0.0.1:1', model='m', prices=TokenPrices())._build()"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )

    assert ("", "") == (done.stdout, done.stderr)


def _with_openai(tmp_path: Path, server: OpenAIServer, **changes: Any) -> Providers:
    group = {"api_key": server.api_key, "base_url": server.base_url, **changes}
    return build_providers(settings_with(tmp_path, openai=group))
