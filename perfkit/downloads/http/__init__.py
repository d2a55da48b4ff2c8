"""HTTP: requests sessions over one shared urllib3 PoolManager."""
