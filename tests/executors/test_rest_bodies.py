"""JSON bodies of /api/v1, which anyone may send."""

from fastapi import FastAPI
from fastapi.testclient import TestClient

from executors import errors
from executors.api.request import Body, make_router


class Note(Body):
    text: str


def client() -> TestClient:
    router = make_router()

    @router.post('/notes')
    async def create(note: Note) -> int:
        return len(note.text)

    app = FastAPI()
    app.include_router(router)
    errors.install(app, lambda path: f'no {path}')
    return TestClient(app)


def test_a_body_of_json_is_small():
    assert client().post('/notes', json={'text': 1_000_000 * 'x'}).json() == 1_000_000
    refused = client().post('/notes', json={'text': 1_100_000 * 'x'})
    assert (refused.status_code, refused.json()['detail']) == (413, 'the body is larger than 1048576 bytes')
