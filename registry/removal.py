"""Deleting an account with all that it has."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from finetuner.excepts import RegistryError
from registry.datasets import delete_all
from registry.experiments import Deleted, delete_experiments
from registry.first_start import LOCAL_ACCOUNT
from registry.models import AccountRow, Base, PromotionRow


def delete_account(session: Session, account_id: str) -> Deleted:
    """Delete an account that is there, its tokens, and all that it has.

    :raises RegistryError: it is the account of the first start.
    :raises RunInProgressError: one of its runs is at work.
    """
    # the strictest of the locks, which also keeps others from adding what is of this account
    row = session.scalars(select(AccountRow).where(AccountRow.id == account_id).with_for_update()).one()
    if row.name == LOCAL_ACCOUNT:
        raise RegistryError(
            f'The account {LOCAL_ACCOUNT!r} is that of the service itself, and stays: delete its runs and data sets'
        )
    # aliases go before what they name
    session.execute(delete(PromotionRow).where(PromotionRow.account_id == account_id))
    deleted = delete_experiments(session, account_id, None)
    deleted.keys += delete_all(session, account_id)
    for table in reversed(Base.metadata.sorted_tables):
        if 'account_id' in table.columns:
            session.execute(delete(table).where(table.columns.account_id == account_id))
    session.execute(delete(AccountRow).where(AccountRow.id == account_id))
    return deleted
