"""The providers that the settings ask for; offline ones where nothing is configured.

Each adapter's module is imported only when it is chosen: a machine without keys loads no vendor's code.
"""

from __future__ import annotations

import importlib.util
from ipaddress import ip_network

from pydantic import SecretStr

from daemon.errors import Misconfigured
from daemon.providers.gemini_wire import OnLateUsage, TokenPrices
from daemon.providers.openai_shapes import ImagePrices
from daemon.providers.protocols import (
    AnnouncesShutdown,
    CutoutProvider,
    ModelNotice,
    PaintProvider,
    Providers,
    TextProvider,
)
from daemon.settings import Settings

REMOVE_BG_URL = "https://api.remove.bg/v1.0"


def build_providers(settings: Settings, *, on_late_usage: OnLateUsage | None = None) -> Providers:
    """One provider for each craft. Opens nothing yet; the caller closes each.

    on_late_usage: told the cost of answers that came after their caller was cancelled.
    Errors: Misconfigured when a chosen protocol or SDK lacks what it needs.
    """
    return Providers(
        cutout=_build_cutout(settings),
        paint=_build_paint(settings),
        text=_build_text(settings, on_late_usage),
    )


async def check_models(providers: Providers, *, timeout_s: float = 10.0) -> tuple[ModelNotice, ...]:
    """The announced ends of configured models, to be logged as warnings at start; never raises for them.

    Only OpenAI's model list states such dates.
    """
    asked = [provider for provider in (providers.paint,) if isinstance(provider, AnnouncesShutdown)]
    found = [await provider.find_shutdown(timeout_s=timeout_s) for provider in asked]
    return tuple(notice for notice in found if notice is not None)


def _build_paint(settings: Settings) -> PaintProvider:
    wanted = settings.openai
    if wanted.api_key is None:
        from daemon.providers.offline_paint import OfflinePaint

        return OfflinePaint()
    from daemon.providers.openai_images import OpenAIImages

    return OpenAIImages(
        api_key=_reveal(wanted.api_key),
        base_url=str(wanted.base_url),
        model=wanted.model,
        quality=wanted.quality,
        prices=ImagePrices(
            wanted.price_text_in_usd,
            wanted.price_image_in_usd,
            wanted.price_image_out_usd,
            wanted.price_per_image_usd,
        ),
        concurrency=wanted.concurrency,
        timeout_s=wanted.timeout_s,
        timeout_high_s=wanted.timeout_high_s,
        allowed=[ip_network(net) for net in settings.fetch.allowed_private_networks],
    )


def _build_cutout(settings: Settings) -> CutoutProvider:
    wanted = settings.cutout
    protocol = wanted.effective_protocol
    if protocol == "offline":
        from daemon.providers.offline_cutout import OfflineCutout

        return OfflineCutout()
    from daemon.providers.cutout_http import HttpCutout

    base_url = str(wanted.base_url) if wanted.base_url else ""
    if protocol == "removebg" and not base_url:
        if wanted.api_key is None:
            raise Misconfigured(
                "The cut-out protocol removebg has neither key nor URL.",
                hint="Set LISTINGD_CUTOUT__API_KEY, or LISTINGD_CUTOUT__BASE_URL of a compatible service.",
            )
        base_url = REMOVE_BG_URL
    if not base_url:
        raise Misconfigured(
            f"The cut-out protocol {protocol} has no URL.", hint="Set LISTINGD_CUTOUT__BASE_URL."
        )
    return HttpCutout(
        protocol=protocol,
        base_url=base_url,
        api_key=_reveal(wanted.api_key),
        price_usd_per_credit=wanted.price_usd_per_credit,
        timeout_s=wanted.timeout_s,
    )


def _build_text(settings: Settings, on_late_usage: OnLateUsage | None) -> TextProvider:
    wanted = settings.gemini
    if wanted.api_key is None:
        from daemon.providers.offline_text import OfflineText

        return OfflineText()
    key, url = _reveal(wanted.api_key), str(wanted.base_url)
    prices = TokenPrices(wanted.price_in_usd, wanted.price_out_usd)
    if wanted.sdk == "generativeai":
        from daemon.providers.gemini import GeminiText

        return GeminiText(
            api_key=key,
            base_url=url,
            model=wanted.model,
            prices=prices,
            concurrency=wanted.concurrency,
            timeout_s=wanted.timeout_s,
            on_late_usage=on_late_usage,
        )
    if importlib.util.find_spec("google.genai") is None:
        raise Misconfigured("The SDK google-genai is not installed.", hint="Install listingd[genai].")
    from daemon.providers.genai import GenaiText

    return GenaiText(
        api_key=key,
        base_url=url,
        model=wanted.model,
        prices=prices,
        concurrency=wanted.concurrency,
        timeout_s=wanted.timeout_s,
    )


def _reveal(key: SecretStr | None) -> str:
    return key.get_secret_value() if key is not None else ""
