"""An experiment: a group of runs with a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetuner.client.session import Session
    from finetuner.client.upload import Data
    from finetuner.data import CSVOptions
    from finetuner.run import Run


class Experiment:
    """An experiment of a service. `finetuner.create_experiment`, `get_experiment` and `list_experiments` make them.

    :param session: the service, and who asks.
    :param record: what the service says of it: name, status, description, created_at, runs.
    """

    def __init__(self, session: Session, record: Mapping[str, Any]):
        self._session = session
        self._record = dict(record)

    def __repr__(self) -> str:
        return f'Experiment(name={self.name!r}, runs={self.runs})'

    @property
    def name(self) -> str:
        return self._record['name']

    @property
    def status(self) -> str:
        """'ACTIVE'."""
        return self._record['status']

    @property
    def description(self) -> str:
        return self._record['description']

    @property
    def created_at(self) -> str:
        """In ISO 8601."""
        return self._record['created_at']

    @property
    def runs(self) -> int:
        """How many runs it had when it was read."""
        return int(self._record['runs'])

    def create_training_run(
        self,
        model: str,
        train_data: Data,
        run_name: str | None = None,
        eval_data: Data | None = None,
        csv_options: CSVOptions | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Run:
        """As `finetuner.fit`, in this experiment.

        :param kwargs: further arguments of `finetuner.fit`.
        """
        from finetuner.client.training import fit

        kwargs = {**kwargs, 'run_name': run_name, 'csv_options': csv_options, 'experiment_name': self.name}
        return fit(model, train_data, eval_data, **kwargs)

    def get_run(self, name: str) -> Run:
        """:raises RegistryError: there is no such run."""
        from finetuner.client.training import get_run

        return get_run(name, self.name)

    def list_runs(self, page: int = 1, size: int = 50) -> list[Run]:
        """Its runs, the newest first.

        :param page: from 1.
        :param size: runs on a page, at most 100.
        """
        from finetuner.client.training import list_runs

        return list_runs(self.name, page, size)

    def delete_run(self, name: str) -> None:
        """:raises RunInProgressError: it is at work."""
        from finetuner.client.training import delete_run

        delete_run(name, self.name)

    def delete_runs(self) -> None:
        """Delete all its runs.

        :raises RunInProgressError: one is at work; then none is deleted.
        """
        from finetuner.client.training import delete_runs

        delete_runs(self.name)
