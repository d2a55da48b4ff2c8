"""Work for several machines on a Dask cluster: one batch on all workers, or one tree on every host. Extra `dask`."""

from perfkit.contrib.dask.batch import download_many
from perfkit.contrib.dask.fleet import HostReport, HostStatus, Waves, status_fleet, sync_fleet

__all__ = ["HostReport", "HostStatus", "Waves", "download_many", "status_fleet", "sync_fleet"]
