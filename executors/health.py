"""`python -m executors.health PORT` or `URL`: exits with 0 if the service there is ready. Without Jina: cheap.

A PORT is asked in gRPC's health protocol, a URL for any answer from 200 on to 299.
"""

from __future__ import annotations

import ssl
import sys
import urllib.error
import urllib.request

TIMEOUT = 5.0  # seconds
SERVICE = 'jina.JinaSingleDataRequestRPC'


def is_serving(port: int) -> bool:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    options = [('grpc.enable_http_proxy', 0)]
    with grpc.insecure_channel(f'127.0.0.1:{port}', options) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            print(f'port {port}: {error.code().name}: {error.details()}', file=sys.stderr)
            return False
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def is_answering(url: str) -> bool:
    # It is asked from its own machine, by a name that its certificate does not have.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=TIMEOUT):
            return True
    except (urllib.error.URLError, OSError) as error:
        print(f'{url}: {error}', file=sys.stderr)
        return False


if __name__ == '__main__':
    asked = sys.argv[1]
    sys.exit(0 if (is_serving(int(asked)) if asked.isdecimal() else is_answering(asked)) else 1)
