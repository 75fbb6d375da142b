"""Whoever asks for fine-tuning tasks in these tests, and works on them."""

from __future__ import annotations

import yaml
from mlflow import MlflowClient

from registry import Registry
from registry.names import new_id
from training.callbacks.training_checkpoint import Recovery
from training.heartbeat import Heartbeat
from training.interruption import Interruption
from training.iterations.carrying import carry
from training.iterations.training import Work

ALIAS = 'Default-Fine-Tuning-Method@production'
METHOD = {
    'name': 'Default Fine Tuning Method',
    'items': {'loader': 'inline', 'fields': ['text']},
    'clicks': {'negative_downsampling': 0.5},
    'loss': 'MultipleNegativeRankingLoss',
    'fit': {'epochs': 3, 'batch_size': 64, 'device': 'cpu'},
    'search': {'evaluations': 2, 'space': {'learning_rate': {'low': 1e-3, 'high': 4e-3, 'log': True}}},
}


class Shopkeeper:
    """A registry of its own, whose tasks are worked on in this process.

    :param home: of the registry, MLflow included.
    """

    def __init__(self, home):
        self.home = home
        self.registry = Registry.open(home)
        self.account = self.registry.get_account().id

    def ask(self, **options):
        return self.registry.tuning.create_task(self.account, METHOD['name'], {'device': 'cpu'}, **options)[0]

    def work(self, task, report=None):
        """Carry a task; what ends it is raised."""
        lease = new_id()
        assert self.registry.start_run(task.run_id, 'host:1', lease)
        heartbeat = Heartbeat(self.registry, task.run_id, lease, 'host:1')
        heartbeat.report = report or heartbeat.report
        try:
            carry(self.registry, self.registry.get_run_by_id(task.run_id), task.id, heartbeat, Interruption(), 60.0)
        except BaseException:
            self.registry.retry_run(task.run_id, lease, 'lost', max_retries=9, delay=0, counts=False)
            raise
        return self.registry.tuning.get_task_by_id(task.id)

    def work_of(self, task):
        """For parts of what is done for a task whose run was started."""
        return Work(
            registry=self.registry,
            task=task,
            run=self.registry.get_run_by_id(task.run_id),
            folder=self.registry.run_directory(task.run_id),
            report=lambda progress: None,
            recovery=Recovery(60.0),
        )

    @property
    def mlflow(self):
        return MlflowClient(f'sqlite:///{self.home / "mlflow.db"}')

    def models(self):
        """The files of models that MLflow keeps, but initial ones."""
        found = (self.home / 'mlflow').rglob('*.zip')
        return [path for path in found if path.name != 'initial_model.zip']

    @classmethod
    def with_method(cls, folder, model, options=METHOD, **search):
        """Whose method lies in `methods` beside its home."""
        (folder / 'methods').mkdir()
        method = {**options, 'model': str(model), 'search': {**options['search'], **search}}
        (folder / 'methods' / 'shop.yml').write_text(yaml.safe_dump(method))
        return cls(folder / 'home')

    @property
    def variables(self):
        return {'FINETUNER_HOME': str(self.home), 'FINETUNER_METHODS': str(self.home.parent / 'methods')}

    def set_variables(self, patch):
        for name, value in self.variables.items():
            patch.setenv(name, value)

    def trainings(self, task):
        """Of a task, the runs of MLflow, the oldest first."""
        experiment = self.mlflow.get_experiment_by_name(task.metrics['experiment'])
        return sorted(self.mlflow.search_runs([experiment.experiment_id]), key=lambda run: run.info.start_time)
