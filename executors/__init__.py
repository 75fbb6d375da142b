"""The Jina microservices in front: ingest, train, encode."""
