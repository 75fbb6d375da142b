"""`python -m executors.health PORT`: exits with 0 if the gRPC service at this PORT is serving. Without Jina: cheap."""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT = 3.0  # seconds
SERVICE = 'jina.JinaSingleDataRequestRPC'


def is_serving(port: int) -> bool:
    options = [('grpc.enable_http_proxy', 0)]
    with grpc.insecure_channel(f'127.0.0.1:{port}', options) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            print(f'port {port}: {error.code().name}: {error.details()}', file=sys.stderr)
            return False
    return answer.status == health_pb2.HealthCheckResponse.SERVING


if __name__ == '__main__':
    sys.exit(0 if is_serving(int(sys.argv[1])) else 1)
