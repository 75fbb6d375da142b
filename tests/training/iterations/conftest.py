"""Clicks in the simulated shop, in a registry."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from examples.clicks.model import write_shop_model
from examples.clicks.shop import Shop
from examples.clicks.users import Behaviour, visits
from registry import Registry


@pytest.fixture(scope='session')
def shop() -> Shop:
    return Shop()


@pytest.fixture(scope='session')
def shop_model(shop, tmp_path_factory):
    return write_shop_model(shop, tmp_path_factory.mktemp('shop') / 'model')


@pytest.fixture(scope='session')
def click(shop):
    """Has so many visits to the shop registered as an account's."""

    def register(registry: Registry, account: str, count: int, seed: int = 0, **behaviour) -> None:
        for visit in visits(shop, count, behaviour=Behaviour(**behaviour), seed=seed):
            registry.clicks.register_session(account, **visit.session)
            registry.clicks.register_events(account, visit.session['session_id'], visit.events)
            if visit.is_irrelevant:
                registry.clicks.mark_irrelevant(account, visit.session['session_id'])

    return register


@pytest.fixture(scope='session')
def empty_mlflow(tmp_path_factory):
    """The database of a new store: making its tables takes longer than all that is done with it."""
    path = tmp_path_factory.mktemp('mlflow') / 'mlflow.db'
    MlflowClient(f'sqlite:///{path}').search_experiments()
    return path
