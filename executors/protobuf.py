"""Requests over HTTP as gRPC sends them, for clients that HTTP alone reaches."""

from __future__ import annotations

from fastapi import Request
from fastapi.exceptions import HTTPException
from fastapi.responses import Response
from google.protobuf.message import DecodeError
from jina.proto import jina_pb2
from jina.types.request.data import DataRequest

from executors.calls import process, token_of
from executors.forwarding import is_small
from executors.threads import QUICK_BYTES, aside

MEDIA_TYPE = 'application/x-protobuf'


def is_protobuf(request: Request) -> bool:
    return request.headers.get('content-type', '').partition(';')[0].strip().lower() == MEDIA_TYPE


async def answer(endpoint: str, request: Request, raw: bytes) -> Response:
    """The answer to a serialized `jina.DataRequestProto`, as one. An error of the executor is in its header.

    :raises HTTPException: 400: it is no such message.
    """
    try:
        message = DataRequest(await aside(len(raw) <= QUICK_BYTES, jina_pb2.DataRequestProto.FromString, raw))
    except DecodeError as error:
        raise HTTPException(400, 'the body is not a serialized jina.DataRequestProto') from error
    message.header.exec_endpoint = endpoint
    token = token_of(request)
    parameters = message.proto_wo_data.parameters
    if token and 'token' not in parameters.fields:
        parameters.fields['token'].string_value = token
    answered = await process(request, message)
    content = await aside(is_small(answered), lambda: answered.proto.SerializeToString())
    return Response(content, media_type=MEDIA_TYPE)
