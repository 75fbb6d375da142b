"""Aliases: names such as 'support@production' for the artifact that is to be served."""

from __future__ import annotations

from finetuner.client.session import current_session
from finetuner.results import Alias, Promotion, read_result


def promote(alias: str, artifact: str) -> Promotion:
    """Let `alias` name another artifact. Executors that serve the alias follow within seconds.

    :param alias: 'name@stage', such as 'support@production'; made if there is none.
    :param artifact: an artifact id, 'experiment/run', or another alias, which is read once.
    :raises RegistryError: the alias is malformed.
    :raises ArtifactError: there is no such artifact.
    """
    return read_result(Promotion, current_session().request('/promote', alias=alias, artifact=artifact).tags)


def rollback(alias: str) -> Promotion:
    """Let `alias` name again what it named before its last promotion.

    :raises RegistryError: there is no such alias, or it named nothing before.
    """
    return read_result(Promotion, current_session().request('/rollback', alias=alias).tags)


def list_aliases(page: int = 1, size: int = 50) -> list[Alias]:
    """The aliases of our account, and what each names now.

    :param page: from 1.
    :param size: aliases on a page, at most 100.
    """
    found = current_session().request('/aliases', page=page, size=size).tags['items']
    return [read_result(Alias, record) for record in found]


def get_alias(alias: str, page: int = 1, size: int = 50) -> Alias:
    """What an alias names now, with a page of the history of its promotions, the latest first.

    :param page: of the history, from 1.
    :param size: promotions on a page, at most 100.
    :raises RegistryError: there is no such alias.
    """
    return read_result(Alias, current_session().request('/alias', alias=alias, page=page, size=size).tags)


def delete_alias(alias: str) -> Promotion:
    """Delete an alias with its history, and return what it named. The artifact stays.

    :raises RegistryError: there is no such alias.
    """
    return read_result(Promotion, current_session().request('/delete_alias', alias=alias).tags)
