"""Promotions: an alias ('name@stage') names an artifact, and has named others before.

A promotion is a row that stays; the one of the highest number counts. All changes of an account's aliases take the
lock of the account.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session, aliased

from finetuner.excepts import NotFoundError, RegistryError
from registry.accounts import lock_account
from registry.database import read_page
from registry.models import ArtifactRow, ExperimentRow, PromotionRow, RunRow
from registry.names import known, shorten
from registry.records import ArtifactRecord, Page, Promotion

ANYTHING = ''
"""What an alias may name where it does not matter."""


class AliasMovedError(RegistryError):
    """An alias names another artifact than was thought."""


def check_named(session: Session, account_id: str, alias: str, artifact_id: str | None) -> None:
    """See that the alias names this artifact now, or nothing. The account is locked.

    :raises AliasMovedError: it does not.
    """
    now = _current(session, account_id, alias)
    if (None if now is None else now.artifact_id) != artifact_id:
        raise AliasMovedError(f'{alias} was given another model meanwhile, which this one was not compared with')


def promote(session: Session, account_id: str, alias: str, artifact: ArtifactRecord) -> Promotion:
    """Have the alias name the artifact from now on. If it does already, nothing changes.

    :raises RegistryError: the artifact has been deleted meanwhile.
    """
    lock_account(session, account_id)
    if session.scalar(select(ArtifactRow.id).where(ArtifactRow.id == artifact.id)) is None:
        raise RegistryError(f'The artifact {artifact.id!r} has been deleted')
    now = _current(session, account_id, alias)
    if now is None or now.artifact_id != artifact.id:
        _insert(session, account_id, alias, artifact.id, 1 if now is None else now.number + 1)
    return get_promotion(session, account_id, alias)


def roll_back(session: Session, account_id: str, alias: str) -> Promotion:
    """Promote what the alias named before; done twice, all is as it was.

    :raises RegistryError: there is no such alias, or it has named nothing else.
    """
    lock_account(session, account_id)
    now = get_promotion(session, account_id, alias)
    if now.previous is None:
        raise RegistryError(f'There is nothing to roll {alias!r} back to: it has named no other artifact that is there')
    _insert(session, account_id, alias, now.previous, now.number + 1)
    return get_promotion(session, account_id, alias)


def get_promotion(session: Session, account_id: str, alias: str) -> Promotion:
    """What the alias names now.

    :raises RegistryError: the account has no such alias.
    """
    row = session.execute(_latest(account_id).where(PromotionRow.alias == alias)).first()
    if row is None:
        names = session.scalars(select(PromotionRow.alias).where(PromotionRow.account_id == account_id).distinct())
        raise NotFoundError(f'There is no alias {shorten(alias)}: {known(str(alias), names)}')
    return _promotion(row)


def list_promotions(session: Session, account_id: str, page: int, size: int) -> Page[Promotion]:
    """One page of what the account's aliases name now, by the names of the aliases."""
    query = _latest(account_id).order_by(PromotionRow.alias)
    rows, total = read_page(session, query, page, size)
    return Page([_promotion(row) for row in rows], total, page, size)


def list_history(session: Session, account_id: str, alias: str, page: int, size: int) -> Page[Promotion]:
    """One page of all promotions of an alias, the newest first.

    :raises RegistryError: the account has no such alias.
    """
    get_promotion(session, account_id, alias)
    query = _promotions(account_id).where(PromotionRow.alias == alias).order_by(PromotionRow.number.desc())
    rows, total = read_page(session, query, page, size)
    return Page([_promotion(row) for row in rows], total, page, size)


def delete_alias(session: Session, account_id: str, alias: str) -> Promotion:
    """Delete an alias with its history, and return what it named.

    :raises RegistryError: the account has no such alias.
    """
    lock_account(session, account_id)
    last = get_promotion(session, account_id, alias)
    session.execute(delete(PromotionRow).where(PromotionRow.account_id == account_id, PromotionRow.alias == alias))
    return last


def aliases_of(session: Session, artifact_ids: Iterable[str]) -> dict[str, list[str]]:
    """The aliases that name each of the artifacts now, where there are any."""
    later = aliased(PromotionRow)
    query = select(PromotionRow.artifact_id, PromotionRow.alias).where(
        PromotionRow.artifact_id.in_(list(artifact_ids)), ~_is_followed(later)
    )
    found: dict[str, list[str]] = {}
    for artifact_id, alias in session.execute(query.order_by(PromotionRow.alias)):
        found.setdefault(artifact_id, []).append(alias)
    return found


def forget(session: Session, artifact_ids: list[str]) -> None:
    """Delete from the history of aliases the artifacts that are to be deleted. The account is locked.

    :raises RegistryError: an alias names one of them now.
    """
    named = aliases_of(session, artifact_ids)
    if named:
        artifact_id, [alias, *_] = next(iter(named.items()))
        name = session.scalar(select(RunRow.name).where(RunRow.artifact_id == artifact_id))
        raise RegistryError(
            f'The alias {alias!r} names the artifact of the run {name!r}: promote another one, roll back, or delete '
            'the alias first'
        )
    session.execute(delete(PromotionRow).where(PromotionRow.artifact_id.in_(artifact_ids)))


def _insert(session: Session, account_id: str, alias: str, artifact_id: str, number: int) -> None:
    session.add(PromotionRow(account_id=account_id, alias=alias, number=number, artifact_id=artifact_id))
    session.flush()


def _current(session: Session, account_id: str, alias: str) -> PromotionRow | None:
    query = select(PromotionRow).where(PromotionRow.account_id == account_id, PromotionRow.alias == alias)
    return session.scalar(query.order_by(PromotionRow.number.desc()).limit(1))


def _is_followed(later: Any) -> Any:
    """Whether a promotion counts no more: its alias has one of a higher number."""
    same = (later.account_id == PromotionRow.account_id, later.alias == PromotionRow.alias)
    return select(later.id).where(*same, later.number > PromotionRow.number).exists()


def _latest(account_id: str) -> Select[Any]:
    return _promotions(account_id).where(~_is_followed(aliased(PromotionRow)))


def _promotions(account_id: str) -> Select[Any]:
    """All promotions of the account, each with the names of its run, and with the artifact that the alias named before.

    Neighbours in the history may name the same artifact, where one between them has been deleted.
    """
    before = aliased(PromotionRow)
    previous = (
        select(before.artifact_id)
        .where(before.account_id == PromotionRow.account_id, before.alias == PromotionRow.alias)
        .where(before.number < PromotionRow.number, before.artifact_id != PromotionRow.artifact_id)
        .order_by(before.number.desc())
        .limit(1)
        .correlate(PromotionRow)
        .scalar_subquery()
    )
    columns = (PromotionRow.alias, PromotionRow.number, PromotionRow.artifact_id, PromotionRow.created_at)
    names = (ExperimentRow.name.label('experiment_name'), RunRow.name.label('run_name'))
    return (
        select(*columns, *names, previous.label('previous'))
        .join(ArtifactRow, ArtifactRow.id == PromotionRow.artifact_id)
        .join(RunRow, RunRow.id == ArtifactRow.run_id)
        .join(ExperimentRow, ExperimentRow.id == RunRow.experiment_id)
        .where(PromotionRow.account_id == account_id)
    )


def _promotion(row: Any) -> Promotion:
    return Promotion(**row._mapping)
