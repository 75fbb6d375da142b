"""What every callback is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.state import TrainingState


class Callback:
    """Takes part in a training: override the events that matter. What an event raises ends the training.

    An event may read the whole state, put figures into `state.metrics`, change the weights, and set `state.stop` to end
    the training. Of a training on several devices only the first process calls callbacks: they see whole losses and
    metrics there, but weights that they change in the middle of a training are not those of the other processes.

    A callback that remembers something from one epoch to the next returns it from `state_dict`, so that a training that
    goes on from a checkpoint goes on with it.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def on_fit_begin(self, state: TrainingState) -> None:
        """Before the first batch; the weights are those that the training starts from."""

    def on_resume(self, state: TrainingState) -> None:
        """After `on_fit_begin` and `load_state_dict`, where the training goes on from a checkpoint."""

    def on_epoch_begin(self, state: TrainingState) -> None:
        """Before the first batch of `state.epoch`."""

    def on_batch_end(self, state: TrainingState) -> None:
        """After every step of the optimizers."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """After the last batch of an epoch and its validation. An epoch that is broken off does not come here."""

    def on_fit_end(self, state: TrainingState) -> None:
        """After the last batch, unless the training failed."""

    def on_exception(self, state: TrainingState, error: BaseException) -> None:
        """The training fails, or the process is asked to end. What is raised here is logged and nothing else."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: numbers, strings, tensors, and lists and dicts of them."""
        return {}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


class MeasuringCallback(Callback):
    """Measures the model before and after the training, for the artifact to tell."""

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """`{'before': {name: value}, 'after': {name: value}}`."""
        raise NotImplementedError(self.name)
