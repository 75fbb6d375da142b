"""What `fit` can be asked to do beside training.

A figure that a callback watches (`monitor`) is 'train_loss', 'val_loss' (where there are `eval_data` or `val_split`) or
a metric of an :class:`EvaluationCallback`, such as 'average_precision'.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from finetuner.documents import Content


@dataclass
class EvaluationCallback:
    """Measures retrieval before and after the training: precision, recall, F1, hit, average precision, reciprocal rank,
    DCG and nDCG at `limit`. A match is relevant if it carries the label of the query; of pairs without labels, if it is
    paired with the query, directly or through others.

    It measures at the end of every epoch, too, if another callback reads its metrics. Several are told apart by the
    names of their metrics: those of the second begin with its `name`, or else with `evaluation-2_`.

    :param query_data: the queries, labelled: a file, documents, or the name of an ingested data set. Or pairs, the
        first of which are the queries, and the second the index.
    :param index_data: what is searched, of the same kinds; None searches the queries.
    :param batch_size: so many items of the full length that the model reads are encoded at once; of shorter texts as
        many more.
    :param exclude_self: where a query is itself in the index, it is no match of its own.
    :param limit: how many matches of each query count.
    :param distance: 'cosine', 'euclidean' or 'sqeuclidean'.
    :param model: which model of a CLIP encodes the queries, such as 'clip-text'; default the one that reads them.
    :param index_model: which encodes the index, such as 'clip-vision'.
    :param gather_examples: keep matches before and after, for `Run.example_results`.
    :param steps_per_interval: measure every so many batches, too.
    :param name: comes before the names of the metrics, as `<name>_precision_at_k`.
    """

    query_data: str | Path | TextIO | Iterable[Content]
    index_data: str | Path | TextIO | Iterable[Content] | None = None
    batch_size: int = 8
    exclude_self: bool = True
    limit: int = 20
    distance: str = 'cosine'
    model: str | None = None
    index_model: str | None = None
    gather_examples: bool = False
    steps_per_interval: int | None = None
    name: str | None = None


@dataclass
class BestModelCheckpoint:
    """In the end the weights are those of the best epoch, not of the last.

    :param monitor: the figure that tells which is the best.
    :param mode: 'min' if less is better, 'max' if more is, 'auto' for the one of a loss and the other of a metric.
    """

    monitor: str = 'val_loss'
    mode: str = 'auto'


@dataclass
class TrainingCheckpoint:
    """Keeps the whole state of the training at the end of every epoch, and where it is stopped, so that it can go on
    from there to the same weights.

    :param last_k_epochs: how many checkpoints are kept.
    """

    last_k_epochs: int = 1


@dataclass
class EarlyStopping:
    """Ends the training when it brings nothing more.

    :param monitor: the figure that tells.
    :param mode: as that of :class:`BestModelCheckpoint`.
    :param patience: after so many epochs in a row that are no better than the best, the training ends.
    :param min_delta: by how much an epoch must be better than the best to count as better.
    :param baseline: a value that an epoch must be better than, too.
    """

    monitor: str = 'val_loss'
    mode: str = 'auto'
    patience: int = 2
    min_delta: float = 0
    baseline: float | None = None


@dataclass
class WiSEFTCallback:
    """In the end the weights are (1 - alpha) × those before the training + alpha × those after it, which keeps more of
    what the model could do before. See https://arxiv.org/abs/2109.01903.

    :param alpha: 0 to 1: 0 gives the pretrained weights, 1 the tuned ones.
    """

    alpha: float


@dataclass
class WandBLogger:
    """Sends losses, learning rate and metrics to Weights & Biases.

    :param token: an API key, which is stored neither with the run nor in the artifact. Without one, and without
        WANDB_API_KEY where the training runs, the figures are kept there, for `wandb sync`.
    :param wandb_args: arguments of `wandb.init`, such as `project`, `entity`, `name`, `tags` and `mode`.
    """

    token: str | None = field(default=None, repr=False)
    wandb_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class MLFlowLogger:
    """Sends losses, learning rate and metrics to MLflow.

    :param experiment: its name; it is made if there is none.
    :param tracking_uri: of a server, a folder or a database; None is MLFLOW_TRACKING_URI where the training runs, or
        else a database in its FINETUNER_HOME.
    """

    experiment: str
    tracking_uri: str | None = None
