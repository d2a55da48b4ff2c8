"""Channels: pointers beside the site's own, to earlier releases that stay as long as a channel offers them."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfkit import ManifestError, Toolkit
from perfkit.cli import main
from perfkit.errors import ConfigError, SignatureError, StaleSourceError, UpdateError
from perfkit.releases.publish.upkeep import promote
from tests.support.signing import NEW, OLD, public, publish_signed
from tests.support.sites import Origin
from tests.support.trees import tree_of

pytestmark = pytest.mark.once


def test_a_channel_is_followed_until_it_moves(kit: Toolkit, origin: Origin, out: Path) -> None:
    """It offers 1 while the site goes on to 3; then 2, by a delta; going back has to be allowed. A held release is
    passed over, as that of the site is.
    """
    for version in "123":
        origin.publish({"a": version.encode() * 1000}, version)
        if version == "1":
            assert main(["promote", str(origin.site), "--channel", "stable", "--version", "1"]) == 0
    for version in "12":
        kit.promote(origin.site, channel="stable", version=version)
        report = kit.sync(origin.url, out, channel="stable")
        assert (report.version, tree_of(out)["a"]) == (version, version.encode() * 1000)
        assert kit.sync(origin.url, out, channel="stable").route == "none"
    kit.promote(origin.site, channel="stable", version="1")
    with pytest.raises(UpdateError, match="older release"):
        kit.sync(origin.url, out, channel="stable")
    assert kit.sync(origin.url, out, channel="stable", allow_older=True).version == "1"
    assert kit.sync(origin.url, out).version == "3"
    kit.rollback(out)
    kit.promote(origin.site, channel="stable", version="3")
    assert kit.sync(origin.url, out, channel="stable").held == "3"


def test_a_release_of_a_channel_stays(kit: Toolkit, origin: Origin, out: Path) -> None:
    """Those that no channel offers leave the history, and their objects the site."""
    for version in "12345":
        origin.publish({"a": version.encode() * 1000}, version, keep_deltas=0, keep_releases=2, grace_s=0)
        if version == "1":
            kit.promote(origin.site, channel="stable", version="1")
    kit.prune(origin.site, grace_s=0)
    assert [each.version for each in kit.releases(origin.url)] == ["5", "4", "1"]
    assert kit.check_site(origin.site).intact
    assert kit.sync(origin.url, out, channel="stable").version == "1"


def test_a_channel_of_a_signed_site_is_signed(kit: Toolkit, origin: Origin, out: Path) -> None:
    """Without a key it can't be moved, and one that is signed by another key is refused."""
    for version in "123":
        publish_signed(origin.site, {"a": version.encode()}, version, OLD)
    with pytest.raises(ConfigError, match="give its key"):
        kit.promote(origin.site, channel="stable", version="1")
    promote(str(origin.site), channel="stable", version="1", sign_keys=(OLD,))
    assert kit.sync(origin.url, out, channel="stable", public_keys=public(OLD)).version == "1"
    promote(str(origin.site), channel="stable", version="2", sign_keys=(NEW,))
    with pytest.raises(SignatureError):
        kit.sync(origin.url, out, channel="stable")
    promote(str(origin.site), channel="stable", version="2", sign_keys=(OLD,))
    kit.prune(origin.site)
    assert kit.sync(origin.url, out, channel="stable").version == "2"
    promote(str(origin.site), channel="stable", version="1", sign_keys=(OLD,))
    with pytest.raises(StaleSourceError):  # as if somebody had kept an old pointer
        kit.sync(origin.url, out, channel="stable")


@pytest.mark.parametrize("names", [("stable", "canary"), ("stable", None), (None, "canary")])
def test_no_pointer_stands_in_for_another(
    kit: Toolkit, origin: Origin, out: Path, names: tuple[str | None, ...]
) -> None:
    """A mirror that shows those who follow one channel what another offers, validly signed: nothing is installed."""
    publish_signed(origin.site, {"a": b"1"}, "1", OLD)
    for channel in ("stable", "canary"):
        promote(str(origin.site), channel=channel, version="1", sign_keys=(OLD,))
    kit.sync(origin.url, out, channel=names[0], public_keys=public(OLD))
    publish_signed(origin.site, {"a": b"2"}, "2", OLD)
    promote(str(origin.site), channel="canary", version="2", sign_keys=(OLD,))
    asked, shown = (origin.site / (f"perfkit-{name}.json" if name else "perfkit.json") for name in names)
    shown.replace(asked)
    with pytest.raises(ManifestError, match="promote it again"):
        kit.sync(origin.url, out, channel=names[0])
    assert (out / "a").read_bytes() == b"1"
    assert kit.status(out).version == "1"


@pytest.mark.parametrize(("channel", "version"), [("a/b", "1"), ("", "1"), ("stable", "9")])
def test_what_can_not_be_promoted(kit: Toolkit, origin: Origin, channel: str, version: str) -> None:
    """A name that is a path, none, and a release that there is not."""
    origin.publish({"a": b"1"}, "1")
    with pytest.raises(ConfigError):
        kit.promote(origin.site, channel=channel, version=version)
    assert not list(origin.site.glob("perfkit-*.json"))


@pytest.mark.parametrize("expires_s", [0, -1, 1e300, float("inf"), float("nan")])
def test_expiries_that_are_none(kit: Toolkit, origin: Origin, expires_s: float) -> None:
    """No channel offers what nobody may install."""
    origin.publish({"a": b"1"}, "1")
    with pytest.raises(ConfigError, match="expires_s must be"):
        kit.promote(origin.site, channel="stable", version="1", expires_s=expires_s)
    assert not (origin.site / "perfkit-stable.json").exists()
