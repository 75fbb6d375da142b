"""Experiments of the service."""

from __future__ import annotations

from typing import Any

from finetuner.client.session import current_session
from finetuner.client.training import DEFAULT_EXPERIMENT
from finetuner.experiment import Experiment


def create_experiment(name: str = DEFAULT_EXPERIMENT, description: str = '') -> Experiment:
    """The experiment of this name, made if there is none.

    :param description: for people; one that is there keeps its own.
    :raises RegistryError: the name is malformed.
    """
    session = current_session()
    return Experiment(session, session.request('/create_experiment', name=name, description=description).tags)


def get_experiment(name: str) -> Experiment:
    """:raises RegistryError: there is no such experiment."""
    session = current_session()
    return Experiment(session, session.request('/experiment', name=name).tags)


def list_experiments(page: int = 1, size: int = 50) -> list[Experiment]:
    """Experiments, the newest first.

    :param page: from 1.
    :param size: experiments on a page, at most 100.
    """
    session = current_session()
    found = session.request('/experiments', page=page, size=size).tags['items']
    return [Experiment(session, record) for record in found]


def delete_experiment(name: str) -> Experiment:
    """Delete an experiment with all its runs and their artifacts, and return what it was.

    :raises RegistryError: there is no such experiment.
    :raises RunInProgressError: one of its runs is at work; then nothing is deleted.
    """
    return _delete(names=[name])[0]


def delete_experiments() -> list[Experiment]:
    """Delete all experiments, with all runs and their artifacts, and return what they were.

    :raises RunInProgressError: a run is at work; then nothing is deleted.
    """
    return _delete()


def _delete(**chosen: Any) -> list[Experiment]:
    session = current_session()
    deleted = session.request('/delete_experiments', **chosen).tags['items']
    return [Experiment(session, record) for record in deleted]
