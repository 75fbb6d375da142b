"""Items to be found by the meaning of their texts, and what was found as a session of the clickstream."""

from __future__ import annotations

from typing import Annotated, Any

from docarray.typing import ID
from pydantic import AfterValidator, Field, StrictBool, ValidationInfo, field_validator

from executors.answers import wire
from executors.api.clickstream import Key
from executors.api.request import Body, Call, make_router
from executors.told import Sent, Told
from finetuner.documents import Document
from registry.clicks import MAX_QUERY
from registry.search_items import MAX_ITEMS, MAX_TEXT

router = make_router('search')


def _check_words(text: str) -> str:
    if not text.strip():
        raise ValueError('it is nothing but white space')
    return text


Wordy = Annotated[str, AfterValidator(_check_words)]


class NewItem(Body):
    object_id: Key
    text: Wordy = Field(min_length=1, max_length=MAX_TEXT, description='What is searched.')
    meta: Sent | None = Field(
        default=None, description='Is handed out with the item. A `text` in it must be that of the item.'
    )

    @field_validator('meta')
    @classmethod
    def _check_text(cls, meta: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        text = info.data.get('text')
        if text is not None and (meta or {}).get('text', text) != text:
            raise ValueError("its 'text' is not that of the item, which is found under that name: give it another name")
        return meta


class NewItems(Body):
    items: list[NewItem] = Field(min_length=1, max_length=MAX_ITEMS)


class ItemIds(Body):
    object_ids: list[Key] = Field(min_length=1, max_length=MAX_ITEMS)


class Query(Body):
    """What is looked for; with `create_session`, what is found becomes a session of the clickstream."""

    search_query: Wordy = Field(min_length=1, max_length=MAX_QUERY)
    limit: int = Field(default=10, ge=1, le=1000)
    create_session: StrictBool = False
    session_id: Key | None = Field(
        default=None, description='Of that session, with create_session alone; default random.'
    )
    user_id: Key | None = None


class Upserted(Body):
    upserted: int


class Deleted(Body):
    deleted: int


class Result(Body):
    object_id: str
    rank: float = Field(description='The cosine of the item and the query.')
    meta: Told | None = Field(description='That of the item, and its `text`.')


class Found(Body):
    search_results: list[Result]
    session_id: str | None
    model: str = Field(description='What embedded them: the id of an artifact, or the name of a model.')


@router.post('/search/items', operation_id='upsert_items')
async def upsert(body: NewItems, call: Call) -> Upserted:
    """Add items, or put them in the place of those of the same ids: all of them, or none."""
    documents = [Document(id=ID(item.object_id), text=item.text, tags=wire(item.meta or {})) for item in body.items]
    return Upserted(**(await call.document('/upsert', {}, documents)).tags)


@router.post('/search/items/delete', operation_id='delete_items')
async def delete(body: ItemIds, call: Call) -> Deleted:
    """Delete those of the items that there are."""
    return Deleted(**await call.tags('/delete_items', object_ids=body.object_ids))


@router.post('/search', operation_id='search')
async def search(body: Query, call: Call) -> Found:
    """The nearest items, the nearest first."""
    given = body.model_dump(exclude={'search_query'})
    return Found(**(await call.document('/search', given, [Document(text=body.search_query)])).tags)
