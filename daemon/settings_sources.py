"""Reads the settings: environment, then a TOML file, then systemd credentials, the first one wins.

    LISTINGD_HTTP__PORT=8788          environment; an empty value means unset
    [http] port = 8788                TOML file of --config
    $CREDENTIALS_DIRECTORY/listingd_openai__api_key     one file per secret, systemd LoadCredential=

A name that nobody knows is an error with the nearest known one, in all three places: a typing error must
never leave a budget or a limit silently unset.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from daemon.errors import Misconfigured
from daemon.settings import Settings

PREFIX = "LISTINGD_"

ALIASES = {
    "DATABASE_URL": "LISTINGD_DATABASE_URL",
    "OPENAI_API_KEY": "LISTINGD_OPENAI__API_KEY",
    "REMOVE_BG_API_KEY": "LISTINGD_CUTOUT__API_KEY",
    "GEMINI_API_KEY": "LISTINGD_GEMINI__API_KEY",
    "GOOGLE_API_KEY": "LISTINGD_GEMINI__API_KEY",
}
"""Names of other people for our settings; ours wins, then the order here."""

CLIENT_VARIABLES = frozenset({"LISTINGD_CONFIG", "LISTINGD_URL", "LISTINGD_KEY"})
"""Read by the command line, not by the daemon."""

TEST_PREFIX = "LISTINGD_TEST_"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as documented. `variable` is LISTINGD_HTTP__PORT, `path` ("http", "port")."""

    variable: str
    path: tuple[str, ...]
    default: str
    description: str
    is_secret: bool


def list_settings() -> list[Setting]:
    """Every setting, in the order of the models."""
    return [
        Setting(
            variable=PREFIX + "__".join(path).upper(),
            path=path,
            default=_describe_default(path[-1], info),
            description=info.description or "",
            is_secret="SecretStr" in str(info.annotation),
        )
        for path, info in _leaves(Settings, ())
    ]


def load_settings(
    config: Path | None = None, environ: Mapping[str, str] | None = None, **overrides: Any
) -> Settings:
    """The settings of this process; `overrides` (from command line options) beat every source.

    Errors: Misconfigured, with one line per wrong setting, named as the reader wrote it; never a value.
    """
    environ = os.environ if environ is None else environ
    named = _canonical(environ)
    _refuse_unknown(named, "environment variable")
    toml = _read_toml(config) if config else {}
    directory = environ.get("CREDENTIALS_DIRECTORY")
    credentials = _canonical(_read_credentials(Path(directory))) if directory else {}
    _refuse_unknown(credentials, "credential")

    class Reader(Settings, BaseSettings):
        """Settings with the sources of this call (pydantic-settings takes them from the class)."""

        model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__")

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            *_: Any,
            **__: Any,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                init_settings,
                _VariableSource(settings_cls, named),
                InitSettingsSource(settings_cls, init_kwargs=toml),
                _VariableSource(settings_cls, credentials),
            )

    try:
        settings = Settings.model_construct(**dict(Reader(**overrides)))
    except ValidationError as exc:
        raise Misconfigured(
            "The settings are not valid: " + "; ".join(_explain(error) for error in exc.errors()) + ".",
            hint="docs/configuration.md lists every setting.",
        ) from None  # the cause prints the values, secrets included
    except SettingsError as exc:
        named_field = re.search(r'field "(\w+)"', str(exc))
        name = PREFIX + (named_field[1].upper() if named_field else "…")
        raise Misconfigured(
            f"{name} is a group or a map of settings, and its value is no JSON.",
            hint=f"Set {name}__<NAME> for one of them; docs/configuration.md lists every setting.",
        ) from None
    _refuse_unknown_kinds("LISTINGD_QUEUE__KIND_LIMITS", settings.queue.kind_limits)
    _refuse_unknown_kinds("LISTINGD_WORKERS__ATTEMPT_TIMEOUTS_S", settings.workers.attempt_timeouts_s)
    return settings


def find_service_key(settings: Settings) -> SecretStr:
    """The first service key: as set, else the one generated into STATE_DIR/service.key (mode 0600).

    Errors: Misconfigured when none is set and others than this machine can reach the server.
    """
    if settings.service_key is not None:
        return settings.service_key
    if not settings.is_loopback:
        raise Misconfigured(
            f"A server on {settings.http.host} needs a service key.",
            hint="Set LISTINGD_SERVICE_KEY to at least 32 random characters, or listen on 127.0.0.1.",
        )
    path = settings.state_dir / "service.key"
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            _write_once(path, secrets.token_urlsafe(32))
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise Misconfigured(
            f"The service key file {path} cannot be read or made: {exc}.",
            hint="Set LISTINGD_SERVICE_KEY, or LISTINGD_STATE_DIR to a directory you may write.",
        ) from exc
    if len(key) < 32:
        raise Misconfigured(f"The key in {path} is shorter than 32 characters.", hint="Delete the file.")
    return SecretStr(key)


def write_reference() -> str:
    """The settings as Markdown tables, one per group: the body of docs/configuration.md."""
    lines: list[str] = []
    group = None
    for setting in list_settings():
        head = setting.path[0] if len(setting.path) > 1 else ""
        if head != group:
            group = head
            title = Settings.model_fields[head].description if head else "The daemon."
            lines += [
                "",
                f"## {(title or '').rstrip('.')}",
                "",
                "| variable | default | meaning |",
                "| --- | --- | --- |",
            ]
        lines.append(f"| `{setting.variable}` | {setting.default} | {setting.description} |")
    return "\n".join(lines).strip() + "\n"


class _VariableSource(EnvSettingsSource):
    """Settings from a mapping of canonical names instead of os.environ."""

    def __init__(self, settings_cls: type[BaseSettings], variables: Mapping[str, str]) -> None:
        self._variables = {name.lower(): value for name, value in variables.items()}
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._variables


def _leaves(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, (*path, name))
        else:
            yield (*path, name), info


_COMPUTED = {
    "state_dir": "`$STATE_DIRECTORY`, else `~/.local/share/listingd`",
    "instance": "the host name",
    "pixel_threads": "the number of processors, 8 at most",
}


def _describe_default(name: str, info: FieldInfo) -> str:
    if name in _COMPUTED:
        return _COMPUTED[name]
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value in (None, (), {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _canonical(variables: Mapping[str, str]) -> dict[str, str]:
    """Our variables by upper-case name: aliases translated, empty ones and those of others left out."""
    named = {
        name.upper(): value.strip()  # an environment file with CRLF leaves a CR at each end
        for name, value in variables.items()
        if name.upper().startswith(PREFIX) and value.strip()
    }
    for alias, name in ALIASES.items():
        value = (variables.get(alias) or variables.get(alias.lower()) or "").strip()
        if value:
            named.setdefault(name, value)
    return {
        name: value
        for name, value in named.items()
        if name not in CLIENT_VARIABLES and not name.startswith(TEST_PREFIX)
    }


def _refuse_unknown(named: Mapping[str, str], what: str) -> None:
    known = [setting.variable for setting in list_settings()]
    maps = tuple(v + "__" for v in known)
    groups = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = [
        name for name in named if name not in known and name not in groups and not name.startswith(maps)
    ]
    if unknown:
        raise Misconfigured(
            "; ".join(f"Unknown {what} {name}{_did_you_mean(name, known)}" for name in sorted(unknown)) + ".",
            hint="docs/configuration.md lists every setting.",
        )


def _refuse_unknown_kinds(variable: str, by_kind: Mapping[str, Any]) -> None:
    if not by_kind:
        return
    from daemon.payloads import INNER_INPUTS, INPUTS  # 30 ms that few settings need

    kinds = INPUTS | INNER_INPUTS
    if unknown := sorted(by_kind.keys() - kinds.keys()):
        raise Misconfigured(
            f"{variable} names kinds that there are not: {', '.join(unknown)}.",
            hint=f"There are {', '.join(kinds)}.",
        )


def _did_you_mean(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f" (did you mean {near[0]}?)" if near else ""


def _explain(error: Mapping[str, Any]) -> str:
    """One wrong setting in words. The input is left out: it may be a secret."""
    path = [str(part) for part in error["loc"]]
    if not path:
        return str(error["msg"]).removeprefix("Value error, ")
    name = PREFIX + "__".join(path).upper()
    if error["type"] == "extra_forbidden":
        return f"{name} is unknown{_did_you_mean(name, [s.variable for s in list_settings()])}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{name}: {message[:1].lower()}{message[1:]}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise Misconfigured(
            f"The settings file {path} cannot be read: {exc.strerror}.", hint="Check --config."
        ) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise Misconfigured(f"The settings file {path} is not valid TOML: {exc}.") from exc
    groups = {setting.path[0] for setting in list_settings() if len(setting.path) > 1}
    for name in groups & found.keys():  # a variable of the same group would win over the whole of it, unseen
        if not isinstance(found[name], dict):
            raise Misconfigured(
                f"{name} in {path} is a group of settings.", hint=f"Write [{name}], and its settings below."
            )
    return found


def _read_credentials(directory: Path) -> dict[str, str]:
    """File name to content; systemd mounts the directory read-only, one file per credential."""
    try:
        return {
            path.name: path.read_text(encoding="utf-8").strip()
            for path in sorted(directory.iterdir())
            if path.name.upper().startswith(PREFIX) or path.name.upper() in ALIASES
        }
    except (OSError, UnicodeDecodeError) as exc:
        raise Misconfigured(f"The credentials in {directory} cannot be read: {exc}.") from exc


def _write_once(path: Path, text: str) -> None:
    """Write a new file whole or not at all: a rival or a crash must not leave half a key."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")
    try:
        os.link(draft, path)
    finally:
        draft.unlink()
