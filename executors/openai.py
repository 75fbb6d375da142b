"""Errors as OpenAI's clients read them."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = '/v1/'
# by the status: the type of the error, and its code
KINDS = {
    401: ('invalid_request_error', 'invalid_api_key'),
    404: ('invalid_request_error', 'model_not_found'),
    429: ('requests', 'rate_limit_exceeded'),
}


class OpenAIProblem(BaseModel):
    """What went wrong, in one sentence."""

    message: str = Field(examples=["'input' is missing"])
    type: str = Field(examples=['invalid_request_error'])
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error as OpenAI's API has it."""

    error: OpenAIProblem


class OpenAIErrors:
    """Below `/v1/`, every error has the form of OpenAI's, wherever it comes from; what is 422 elsewhere is 400."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] == 'http' and scope['path'].startswith(PREFIX):
            send = _Translator(send).send
        await self.app(scope, receive, send)


class _Translator:
    def __init__(self, send: Send):
        self._send = send
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        if message['type'] == 'http.response.start' and message['status'] >= 400:
            self._start = message  # its length is not yet known
            return
        if self._start is not None:
            start, self._start = self._start, None
            status = 400 if start['status'] == 422 else start['status']
            # an error is one sentence: its first part is the whole
            body = json.dumps(_translate(status, message['body'])).encode()
            headers = [pair for pair in start['headers'] if pair[0] != b'content-length']
            headers.append((b'content-length', str(len(body)).encode()))
            await self._send({**start, 'status': status, 'headers': headers})
            message = {**message, 'body': body}
        await self._send(message)


def _translate(status: int, body: bytes) -> dict[str, Any]:
    detail = str(json.loads(body)['detail'])
    kind, code = KINDS.get(status, ('invalid_request_error' if status < 500 else 'server_error', None))
    name = detail.split("'")[1] if detail.startswith("'") else None  # as our errors begin that are about a field
    return {'error': {'message': detail, 'type': kind, 'param': name, 'code': code}}
