"""Eight hosts behind one shared cache, as docs/howto/fleet.md sets it up: the origin sends one copy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from perfkit import Config, Toolkit
from tests.servers.bench import Bench
from tests.servers.catalogue import CACHES
from tests.servers.test_servers import each
from tests.support.trees import noise, tree_of, write_tree

_RECIPES = ("nginx proxy_cache", "Squid", "Varnish")


@each(server for server in CACHES if server.name in _RECIPES)
def test_eight_hosts_cost_the_origin_one_copy(bench: Bench, out: Path) -> None:
    """A first install and an update, by one host and then by seven at once: no object leaves the origin twice."""
    tree = {f"{number}.bin": noise(number, 100_000) for number in range(5)}

    def sync(host: int) -> str:
        with Toolkit(Config()) as kit:
            return kit.sync(bench.url("fleet/"), out / f"host-{host}").version

    for version in ("1", "2"):
        tree["0.bin"] = version.encode() + tree["0.bin"]
        with Toolkit() as kit:
            kit.publish(write_tree(out / "src", tree), out / "site", version=version)
        bench.put_tree(out / "site", "fleet")
        bench.wait_until_served("fleet/perfkit.json", (out / "site" / "perfkit.json").read_bytes())
        assert sync(0) == version
        with ThreadPoolExecutor(7) as hosts:
            assert set(hosts.map(sync, range(1, 8))) == {version}
        assert all(tree_of(out / f"host-{host}") == tree for host in range(8))
    for each_object in (out / "site" / "objects").iterdir():
        assert bench.sent_by_origin(f"fleet/objects/{each_object.name}") <= each_object.stat().st_size
