"""Flow YAMLs that wire the executors together; each starts with `jina flow --uses`."""
