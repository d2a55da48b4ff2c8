"""Settings, and the environment that gives their defaults."""

from __future__ import annotations

import dataclasses

import pytest

from perfkit import Config, ConfigError
from perfkit.config import parse_size

WRITTEN = {  # a way to write each field, and what it then is
    "workers": ("3", 3),
    "segments": ("2", 2),
    "min_segment_bytes": ("512K", 512 << 10),
    "connections_per_host": ("1", 1),
    "adaptive": ("off", False),
    "buffer_bytes": ("1.5M", 3 << 19),
    "rate_limit": ("5M", 5 << 20),
    "connect_timeout_s": ("2.5", 2.5),
    "read_timeout_s": ("2m", 120.0),
    "stall_bytes_per_s": ("0", 0),
    "stall_window_s": ("90s", 90.0),
    "retries": ("0", 0),
    "backoff_base_s": ("0", 0.0),
    "backoff_cap_s": ("1h", 3600.0),
    "retry_after_cap_s": ("1S", 1.0),
    "headers": ('{"X-Team": "rules"}', {"X-Team": "rules"}),
    "auth": ("me:se:cret", ("me", "se:cret")),
    "proxies": ('{"https": "http://proxy:3128"}', {"https": "http://proxy:3128"}),
    "trust_env": ("No", False),
    "verify": ("0", False),
    "ca_bundle": ("/etc/ssl/own.pem", "/etc/ssl/own.pem"),
    "client_cert": ("/c.pem:/k.pem", ("/c.pem", "/k.pem")),
    "max_redirects": ("0", 0),
    "allow_downgrade": ("true", True),
    "keep_partial": ("false", False),
    "durable": ("yes", True),
    "local_changes": ("refuse", "refuse"),
    "check_contents": ("yes", True),
    "keep_generations": ("12", 12),
    "max_files": ("1000000", 1_000_000),
    "trust_other_owners": ("on", True),
}


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Config)])
def test_every_field_has_a_variable(name: str) -> None:
    """And it changes that field alone; empty is as not set."""
    text, value = WRITTEN[name]
    config = Config.from_env({f"PERFKIT_{name.upper()}": text, "PATH": "/bin"})
    assert getattr(config, name) == value != getattr(Config(), name)
    assert dataclasses.replace(config, **{name: getattr(Config(), name)}) == Config()
    assert Config.from_env({f"PERFKIT_{name.upper()}": ""}) == Config()


def test_the_process_has_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call gives goes before it."""
    monkeypatch.setenv("PERFKIT_WORKERS", "3")
    monkeypatch.setenv("PERFKIT_SEGMENTS", "3")
    config = Config.from_env(segments=5)
    assert (config.workers, config.segments) == (3, 5)


@pytest.mark.parametrize("name", ["rate_limit", "ca_bundle", "auth", "client_cert"])
def test_none_is_written_where_it_is_a_value(name: str) -> None:
    """Where None is a value, it can be written."""
    assert getattr(Config.from_env({f"PERFKIT_{name.upper()}": "None"}), name) is None


@pytest.mark.parametrize(("variable", "text", "said"), [
    ("PERFKIT_WORKERS", "several", "PERFKIT_WORKERS='several' is not a whole number"),
    ("PERFKIT_WORKERS", "4K", "PERFKIT_WORKERS='4K' is not a whole number or none"),
    ("PERFKIT_SEGMENTS", "none", "PERFKIT_SEGMENTS='none' is not a whole number"),
    ("PERFKIT_WORKERS", "0", "PERFKIT_WORKERS='0': Config.workers must be at least 1, or None; got 0"),
    ("PERFKIT_RATE_LIMIT", "quick", "PERFKIT_RATE_LIMIT='quick' is not a number of bytes, such as 500K or 5M or none"),
    ("PERFKIT_RATE_LIMIT", "0", "more than 0, or None for no limit"),
    ("PERFKIT_READ_TIMEOUT_S", "soon", "is not a number of seconds"),
    ("PERFKIT_READ_TIMEOUT_S", "s", "is not a number of seconds"),
    ("PERFKIT_READ_TIMEOUT_S", "-1", "PERFKIT_READ_TIMEOUT_S='-1' is not a number of seconds"),
    ("PERFKIT_READ_TIMEOUT_S", "0", "PERFKIT_READ_TIMEOUT_S='0': Config.read_timeout_s must be more than 0"),
    ("PERFKIT_VERIFY", "maybe", "PERFKIT_VERIFY='maybe' is not 1 or 0"),
    ("PERFKIT_LOCAL_CHANGES", "drop", "PERFKIT_LOCAL_CHANGES='drop': Config.local_changes must be one of"),
])  # fmt: skip
def test_a_variable_that_does_not_fit(variable: str, text: str, said: str) -> None:
    """It is named, with what it should be."""
    with pytest.raises(ConfigError) as caught:
        Config.from_env({variable: text})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("PERFKIT_WORKER", "PERFKIT_WORKER is set, and perfkit has no such setting; did you mean PERFKIT_WORKERS?"),
        ("PERFKIT_SERVICE_HOST", "PERFKIT_SERVICE_HOST is set, and perfkit has no such setting"),
        ("PERFKIT_STAGED", ""),
    ],
)
def test_a_variable_of_no_setting(variable: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    """Kubernetes sets some beside a service of that name: a warning. What `--check` sets for its command is none."""
    assert Config.from_env({variable: "4", "PERFKIT_RETRIES": "2"}) == Config(retries=2)
    assert [record.getMessage() for record in caplog.records] == ([said] if said else [])


@pytest.mark.parametrize(("variable", "text"), [
    ("PERFKIT_AUTH", "hush"),
    ("PERFKIT_HEADERS", "Authorization: hush"),
    ("PERFKIT_HEADERS", '{"X-Key": ["hush"]}'),
    ("PERFKIT_HEADERS", '{"X-Key": "hush\\n"}'),
    ("PERFKIT_PROXIES", "http://me:hush@proxy"),
])  # fmt: skip
def test_no_secret_in_a_complaint(variable: str, text: str) -> None:
    """Variables that may hold a password are named and not shown, also not by a traceback's causes."""
    with pytest.raises(ConfigError, match=variable) as caught:
        Config.from_env({variable: text})
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_no_secret_when_it_is_shown() -> None:
    """A Config may be logged."""
    config = Config(auth=("me", "hush"), headers={"X-Key": "hush"}, proxies={"http": "http://me:hush@proxy"})
    assert "hush" not in repr(config)
    assert "segments=16" in repr(config)


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("500K", 512_000), ("5MiB", 5 << 20), ("1.5g", 3 << 29)])
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    """Powers of 1024, however the unit is written."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "name",
    ["connect_timeout_s", "read_timeout_s", "stall_window_s", "backoff_base_s", "backoff_cap_s", "retry_after_cap_s"],
)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e300, 1e10])
def test_times_are_finite(name: str, value: float) -> None:
    """No socket and no wait takes an infinite time."""
    with pytest.raises(ConfigError, match="less than a century"):
        Config(**{name: value})
    with pytest.raises(ConfigError, match=f"PERFKIT_{name.upper()}"):
        Config.from_env({f"PERFKIT_{name.upper()}": str(value)})
