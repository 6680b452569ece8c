"""Settings: where they come from, who wins, and how a mistake is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemon.errors import Misconfigured
from daemon.settings import Http, Settings
from daemon.settings_sources import find_service_key, list_settings, load_settings, write_reference

REPOSITORY = Path(__file__).parents[2]
SECRET = "s" * 40


def test_the_environment_beats_the_file_and_the_file_beats_credentials(tmp_path: Path) -> None:
    config = tmp_path / "listingd.toml"
    config.write_text('[http]\nport = 2\nhost = "0.0.0.0"\n')
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "listingd_http__port").write_text("3\n")
    (credentials / "listingd_http__host").write_text("::1\n")
    (credentials / "listingd_http__keepalive_s").write_text("4\n")
    environ = {"LISTINGD_HTTP__PORT": "1", "CREDENTIALS_DIRECTORY": str(credentials)}

    settings = load_settings(config, environ)

    assert (1, "0.0.0.0", 4) == (settings.http.port, settings.http.host, settings.http.keepalive_s)


def test_options_of_the_command_line_beat_everything_and_keep_the_rest() -> None:
    settings = load_settings(
        environ={"LISTINGD_HTTP__PORT": "1", "LISTINGD_HTTP__HOST": "::1"}, http={"port": 5}
    )

    assert (5, "::1") == (settings.http.port, settings.http.host)


@pytest.mark.parametrize(
    ("alias", "path"),
    [
        ("OPENAI_API_KEY", ("openai", "api_key")),
        ("REMOVE_BG_API_KEY", ("cutout", "api_key")),
        ("GEMINI_API_KEY", ("gemini", "api_key")),
        ("GOOGLE_API_KEY", ("gemini", "api_key")),
    ],
)
def test_the_usual_names_of_provider_keys_are_read(alias: str, path: tuple[str, str]) -> None:
    group, name = path
    ours = f"LISTINGD_{group}__{name}".upper()

    alone = load_settings(environ={alias: "theirs"})
    both = load_settings(environ={alias: "theirs", ours: "ours"})

    assert "theirs" == getattr(getattr(alone, group), name).get_secret_value()
    assert "ours" == getattr(getattr(both, group), name).get_secret_value()


def test_the_end_of_its_line_is_no_part_of_a_key() -> None:
    """Files of secrets have it; in a header it would fail every call, booked as perhaps paid."""
    settings = load_settings(environ={"OPENAI_API_KEY": "sk-abc\n"})

    assert settings.openai.api_key is not None
    assert "sk-abc" == settings.openai.api_key.get_secret_value()


def test_an_empty_value_means_unset() -> None:
    settings = load_settings(environ={"LISTINGD_HTTP__PORT": "", "OPENAI_API_KEY": " ", "DATABASE_URL": ""})

    assert 8787 == settings.http.port
    assert settings.openai.api_key is None
    assert settings.database_url is None


def test_an_environment_file_with_the_line_ends_of_windows_is_read() -> None:
    """The CR became part of the host, which was then no loopback address."""
    settings = load_settings(environ={"OPENAI_API_KEY": "sk-1\r", "LISTINGD_HTTP__HOST": "127.0.0.1\r"})

    assert settings.openai.api_key is not None
    assert ("sk-1", "127.0.0.1") == (settings.openai.api_key.get_secret_value(), settings.http.host)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"LISTINGD_HTTP__PROT": "1"}, "LISTINGD_HTTP__PROT (did you mean LISTINGD_HTTP__PORT?)"),
        ({"LISTINGD_BUDGET__USER_USD_PER_DAY": "1"}, "did you mean LISTINGD_BUDGETS__USER_USD_PER_DAY?"),
        ({"LISTINGD_QQQ": "1"}, "Unknown environment variable LISTINGD_QQQ"),
        ({"LISTINGD_HTTP__PORT": "high"}, "LISTINGD_HTTP__PORT: "),
        ({"LISTINGD_HTTP__PORT": "70000"}, "LISTINGD_HTTP__PORT: "),
        ({"LISTINGD_LEASE_S": "4"}, "LISTINGD_HEARTBEAT_S must be at most half of LISTINGD_LEASE_S"),
        ({"OPENAI_API_KEY": "sk\N{EN DASH}abc"}, "LISTINGD_OPENAI__API_KEY: must be one line of ASCII"),
        ({"LISTINGD_GEMINI__API_KEY": "a\nb"}, "LISTINGD_GEMINI__API_KEY: must be one line of ASCII"),
        ({"LISTINGD_OPENAI__REQUESTS_PER_MINUTE": "inf"}, "LISTINGD_OPENAI__REQUESTS_PER_MINUTE: "),
        ({"LISTINGD_SERVICE_KEY": "short"}, "LISTINGD_SERVICE_KEY: must have 32 to 512"),
        ({"LISTINGD_SERVICE_KEY": "ü" * 40}, "LISTINGD_SERVICE_KEY: must have 32 to 512 printable"),
        ({"LISTINGD_DATABASE_URL": "mysql://x"}, "LISTINGD_DATABASE_URL: must begin with postgresql://"),
        ({"LISTINGD_STORAGE_URL": "ftp://x"}, "LISTINGD_STORAGE_URL must begin with"),
        ({"LISTINGD_STORAGE_URL": "file://var/pictures"}, "three slashes before a directory"),
        ({"LISTINGD_STORAGE_URL": "s3://key:hidden@bucket"}, "must hold no credentials"),
        (
            {"LISTINGD_QUEUE__KIND_LIMITS": '{"a+": 8}'},
            "LISTINGD_QUEUE__KIND_LIMITS names kinds that there are not: a+",
        ),
        ({"LISTINGD_WORKERS__ATTEMPT_TIMEOUTS_S": '{"apluss": 8}'}, "that there are not: apluss"),
        ({"LISTINGD_QUEUE__KIND_LIMITS": "{"}, "LISTINGD_QUEUE__KIND_LIMITS: must be a JSON object"),
        ({"LISTINGD_HTTP__TRUSTED_PROXIES": "10.0.0.0/8,x"}, "LISTINGD_HTTP__TRUSTED_PROXIES"),
        ({"LISTINGD_BUDGETS__USER_USD_PER_DAY": "-1"}, "LISTINGD_BUDGETS__USER_USD_PER_DAY: "),
        ({"LISTINGD_INSTANCE": "a b"}, "LISTINGD_INSTANCE: "),
        ({"LISTINGD_HTTP": "8787"}, "LISTINGD_HTTP"),
        ({"LISTINGD_HTTP": "port=1"}, "LISTINGD_HTTP is a group"),
    ],
)
def test_a_mistake_names_its_variable(environ: dict[str, str], message: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        load_settings(environ=environ)

    assert message in caught.value.message


def test_a_mistake_in_a_file_or_a_credential_is_told_too(tmp_path: Path) -> None:
    config = tmp_path / "listingd.toml"
    config.write_text("[http]\nprot = 1\n")
    with pytest.raises(Misconfigured, match="LISTINGD_HTTP__PROT is unknown"):
        load_settings(config, {})

    config.write_text("[http\n")
    with pytest.raises(Misconfigured, match="not valid TOML"):
        load_settings(config, {})

    with pytest.raises(Misconfigured, match="cannot be read"):
        load_settings(tmp_path / "none.toml", {})

    config.write_text("budgets = 5\n")
    with pytest.raises(Misconfigured, match=r"budgets in .* is a group"):
        load_settings(config, {"LISTINGD_BUDGETS__TOTAL_USD_PER_DAY": "3"})

    (tmp_path / "listingd_openai_api_key").write_text(SECRET)
    with pytest.raises(Misconfigured, match="Unknown credential LISTINGD_OPENAI_API_KEY"):
        load_settings(environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_a_mistake_never_shows_a_value() -> None:
    """The value may be a secret with a character too few."""
    for name in (
        "LISTINGD_SERVICE_KEY",
        "LISTINGD_DATABASE_URL",
        "LISTINGD_LEASE_S",
        "LISTINGD_QUEUE__KIND_LIMITS",
    ):
        with pytest.raises(Misconfigured) as caught:
            load_settings(environ={name: "hunter2"})
        assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"


def test_variables_of_others_and_of_the_tests_are_left_alone() -> None:
    load_settings(environ={"LISTINGD_TEST_PG_VERSION": "16", "LISTINGD_URL": "http://x", "PATH": "/bin"})


def test_lists_are_written_with_commas_and_maps_as_json() -> None:
    settings = load_settings(
        environ={
            "LISTINGD_HTTP__CORS_ORIGINS": "https://a.example, https://b.example",
            "LISTINGD_HTTP__TRUSTED_PROXIES": "10.1.2.3/8",
            "LISTINGD_QUEUE__KIND_LIMITS": '{"aplus": 8}',
        }
    )

    assert ("https://a.example", "https://b.example") == settings.http.cors_origins
    assert ("10.0.0.0/8",) == settings.http.trusted_proxies
    assert {"aplus": 8} == settings.queue.kind_limits


def test_secrets_do_not_show_when_the_settings_are_printed() -> None:
    names = [setting.variable for setting in list_settings() if setting.is_secret]
    value = "postgresql://u:hunter2-hunter2-hunter2-hunter2@h/d"

    settings = load_settings(environ=dict.fromkeys(names, value))

    assert {"LISTINGD_OPENAI__API_KEY", "LISTINGD_DATABASE_URL", "LISTINGD_STORAGE__SECRET_KEY"} <= set(names)
    assert "hunter2" not in repr(settings)


def test_the_service_key_is_made_once_and_only_we_can_read_it(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "a" / "b")

    first = find_service_key(settings).get_secret_value()
    second = find_service_key(settings).get_secret_value()

    assert first == second
    assert 32 <= len(first)
    assert 0o600 == (settings.state_dir / "service.key").stat().st_mode & 0o777
    assert 0o700 == settings.state_dir.stat().st_mode & 0o777
    assert ["service.key"] == [path.name for path in settings.state_dir.iterdir()]


def test_no_key_is_made_for_a_server_that_others_can_reach(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, http=Http(host="0.0.0.0"))

    with pytest.raises(Misconfigured, match="needs a service key"):
        find_service_key(settings)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("listing.example", False)],
)
def test_loopback_is_recognised(host: str, loopback: bool) -> None:
    assert loopback is Settings(http=Http(host=host)).is_loopback


def test_the_state_dir_follows_systemd_then_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/home/u/data")
    assert Path("/home/u/data/listingd") == Settings().state_dir

    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/listingd:/var/lib/other")
    assert Path("/var/lib/listingd") == Settings().state_dir


def test_the_cutout_protocol_follows_from_what_is_set() -> None:
    assert "offline" == load_settings(environ={}).cutout.effective_protocol
    assert "removebg" == load_settings(environ={"REMOVE_BG_API_KEY": "k"}).cutout.effective_protocol
    given = {"REMOVE_BG_API_KEY": "k", "LISTINGD_CUTOUT__PROTOCOL": "rembg"}
    assert "rembg" == load_settings(environ=given).cutout.effective_protocol


def test_every_setting_has_a_description() -> None:
    assert [] == [setting.variable for setting in list_settings() if not setting.description]


def test_every_default_can_be_written_into_the_environment() -> None:
    """A Literal of numbers once took none of its own values from there."""
    defaults = {
        s.variable: s.default.strip("`") for s in list_settings() if re.fullmatch("`[^`]+`", s.default)
    }

    assert "18" == defaults["LISTINGD_EMBEDDED__VERSION"]
    assert load_settings(environ={}) == load_settings(environ=defaults)


def test_the_documentation_lists_exactly_these_settings() -> None:
    """`make docs` writes it."""
    documented = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")

    assert write_reference().strip() == documented.partition("<!-- settings -->")[2].strip()


def test_the_example_environment_has_only_settings_that_exist() -> None:
    text = (REPOSITORY / "systemd" / "listingd.env.example").read_text(encoding="utf-8")
    names = re.findall(r"^(LISTINGD_\w+)=", text, re.MULTILINE)

    assert names
    assert [] == sorted(set(names) - {setting.variable for setting in list_settings()})
