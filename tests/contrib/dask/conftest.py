"""One cluster for all tests that kill none of its processes, and only while they run: an idle one is never still."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.dask_cluster import Cluster, start_warm
from tests.support.warm import WarmPython


@pytest.fixture(scope="package")
def warm_dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    with start_warm(tmp_path_factory.mktemp("warm-dask")) as warm:
        yield warm


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory, warm_dask: WarmPython) -> Iterator[Cluster]:
    """A scheduler and two workers, `one` and `two`."""
    with Cluster(tmp_path_factory.mktemp("cluster"), warm_dask) as cluster:
        cluster.add_worker("one", "--resources", "canary=1")
        cluster.add_worker("two")
        yield cluster
