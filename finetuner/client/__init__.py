"""The client: talks to the services over a kept gRPC channel, without Jina."""

from finetuner.client.artifacts import download_artifact

__all__ = ['download_artifact']
