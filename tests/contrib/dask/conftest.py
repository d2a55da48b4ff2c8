"""One cluster for all tests that kill none of its processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.dask_cluster import DASK, Cluster
from tests.support.warm import USED_BY_COMMANDS, WarmPython


@pytest.fixture(scope="session")
def warm_dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    with WarmPython(tmp_path_factory.mktemp("warm-dask"), *DASK, *USED_BY_COMMANDS) as warm:
        yield warm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, warm_dask: WarmPython) -> Iterator[Cluster]:
    """A scheduler and two workers, `one` and `two`."""
    with Cluster(tmp_path_factory.mktemp("cluster"), warm_dask.start) as cluster:
        cluster.add_worker("one", "--resources", "canary=1")
        cluster.add_worker("two")
        yield cluster
