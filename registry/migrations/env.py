"""Alembic's entry: runs the migrations in the transaction of the connection that `registry.database` hands over."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from registry.models import Base, CleanString, UTCDateTime


def render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Keep our own types out of migrations: those must mean the same for ever."""
    if kind == 'type' and isinstance(item, UTCDateTime):
        return 'sa.DateTime(timezone=True)'
    if kind == 'type' and isinstance(item, CleanString):
        return f'sa.String(length={item.length})'
    return False


context.configure(
    connection=context.config.attributes['connection'],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
