"""`finetuner export`: a Flow file becomes a docker-compose file or Kubernetes manifests.

Jina's own exporters want an image for each executor, ask a hub for the gateway's, probe with a program that takes
seconds of CPU each time, and give two replicas one port. Here all parts run from one image, each by the command that
its part of the Flow means.
"""
