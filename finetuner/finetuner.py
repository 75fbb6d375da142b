"""The functions of this package as methods, for code that was written so."""

from __future__ import annotations

from finetuner.client import account, aliases, artifacts, datasets, experiments, session, training


class Finetuner:
    """What `finetuner` can do, as an object: each method is the function of the same name.

    Objects have nothing of their own: all use the session of the last `login`.
    """

    login = staticmethod(session.login)
    logout = staticmethod(session.logout)
    get_token = staticmethod(session.get_token)
    whoami = staticmethod(account.whoami)
    usage = staticmethod(account.usage)
    create_token = staticmethod(account.create_token)
    list_tokens = staticmethod(account.list_tokens)
    revoke_token = staticmethod(account.revoke_token)

    create_experiment = staticmethod(experiments.create_experiment)
    get_experiment = staticmethod(experiments.get_experiment)
    list_experiments = staticmethod(experiments.list_experiments)
    delete_experiment = staticmethod(experiments.delete_experiment)
    delete_experiments = staticmethod(experiments.delete_experiments)

    create_training_run = staticmethod(training.fit)
    create_run = staticmethod(training.fit)
    fit = staticmethod(training.fit)
    get_run = staticmethod(training.get_run)
    list_runs = staticmethod(training.list_runs)
    delete_run = staticmethod(training.delete_run)
    delete_runs = staticmethod(training.delete_runs)

    list_datasets = staticmethod(datasets.list_datasets)
    get_dataset = staticmethod(datasets.get_dataset)
    delete_dataset = staticmethod(datasets.delete_dataset)

    list_artifacts = staticmethod(artifacts.list_artifacts)
    download_artifact = staticmethod(artifacts.download_artifact)
    promote = staticmethod(aliases.promote)
    rollback = staticmethod(aliases.rollback)
    list_aliases = staticmethod(aliases.list_aliases)
    get_alias = staticmethod(aliases.get_alias)
    delete_alias = staticmethod(aliases.delete_alias)
