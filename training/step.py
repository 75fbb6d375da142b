"""One batch: embeddings, loss and gradients, in one pass or chunk by chunk, in one process or several.

The embeddings of a batch are cut off from what made them: the loss is differentiated down to the embeddings, and those
gradients are then sent through the encoder. Since dL/dθ = Σ (dL/de_i)ᵀ de_i/dθ over the items, it does not matter in
which process, or when, each item goes through the encoder, as long as the loss has seen all embeddings together. Where
the graphs of all items do not fit in memory at once, the embeddings are computed without graphs first, and again with
a graph chunk by chunk (gradient caching: Gao et al. 2021, https://arxiv.org/abs/2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetuner.inference.transfer import on_device
from training.data import Examples, distinct
from training.embed import Embedder, budget_chunks
from training.task import Task

Backward = Callable[[Tensor], None]


class Step:
    """Computes the loss of a batch, and its gradients.

    :param embedders: for every encoder that reads the examples.
    :param budgets: for every encoder, what may go through it at once with a graph: tokens of texts, items of anything
        else; None for all at once.
    """

    def __init__(
        self,
        task: Task,
        examples: Examples,
        embedders: Mapping[str, Embedder],
        accelerator: Accelerator,
        budgets: Mapping[str, int | None] | None = None,
    ):
        self.task, self.examples, self.embedders, self.accelerator = task, examples, embedders, accelerator
        self.budgets = budgets or {}

    def backward(self, rows: np.ndarray, weight: float = 1.0, seed: int = 0) -> Tensor:
        """Add `weight` times the gradients of the batch's loss to those of the parameters.

        In several processes each sends its share of the items through the encoders, and computes the loss of the whole
        batch: call `reduce_gradients` after the last batch of a step.

        :param rows: of the examples, int64 [B], the same in all processes.
        :param seed: of what is random where there are several processes: in the objective all draw the same, in the
            encoders each draws its own, and the same again where the training goes on from a checkpoint.
        :returns: the loss, float32 scalar, without a graph.
        """
        if self.accelerator.num_processes > 1:
            torch.manual_seed(seed * self.accelerator.num_processes + self.accelerator.process_index)
        embeddings: dict[str, Tensor] = {}
        pending: list[tuple[Tensor, np.ndarray, Backward]] = []
        places: list[tuple[int, str, np.ndarray]] = []
        for name, items, where in distinct(self.examples.columns, rows):
            mine = self._share(name, items)
            own, backward = self._embed(name, items[mine[self.accelerator.process_index]])
            embeddings[name] = self._gather(own, mine).requires_grad_()
            pending.append((embeddings[name], mine[self.accelerator.process_index], backward))
            places += [(number, name, place) for number, place in where]
        columns = [embeddings[name][self._put(place)] for _, name, place in sorted(places, key=lambda at: at[0])]
        with self._agreed_randomness(seed):
            loss = self._objective(columns, rows)
        if loss.requires_grad:
            self.accelerator.backward(loss * weight)
        for leaf, own_items, backward in pending:
            if leaf.grad is not None and len(own_items):
                backward(leaf.grad[self._put(own_items)])
        return loss.detach()

    @torch.no_grad()
    def loss(self, rows: np.ndarray) -> Tensor:
        """The loss of a batch, float32 scalar; every process computes all of it."""
        columns: dict[int, Tensor] = {}
        for name, items, where in distinct(self.examples.columns, rows):
            chunks, parts = self._parts(name, items)
            embeddings = torch.empty(len(items), self._dim(name), device=self.accelerator.device)
            for chunk, part in zip(chunks, parts, strict=True):  # the chunks are sorted by cost
                embeddings[self._put(chunk)] = part
            columns |= {number: embeddings[self._put(place)] for number, place in where}
        return self._objective([columns[number] for number in sorted(columns)], rows)

    def reduce_gradients(self) -> None:
        """Add up what every process has of the encoders' gradients; those of the objective are the same already."""
        if self.accelerator.num_processes == 1:
            return
        trained = [parameter for parameter in self.task.encoders.parameters() if parameter.requires_grad]
        used = torch.tensor(
            [float(parameter.grad is not None) for parameter in trained], device=self.accelerator.device
        )
        torch.distributed.all_reduce(used)
        parameters = [parameter for parameter, count in zip(trained, used.tolist(), strict=True) if count]
        if not parameters:
            return
        for parameter in parameters:  # some process has a gradient, but perhaps not this one
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters if parameter.grad is not None])
        torch.distributed.all_reduce(flat)
        parts = flat.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def reduce_buffers(self) -> None:
        """Make running statistics the mean of those of all processes, each of which saw its own items. Those of frozen
        layers stay as they are."""
        if self.accelerator.num_processes > 1:
            modules = [module for module in self.task.encoders.modules() if module.training]
            for buffer in (buffer for module in modules for buffer in module.buffers(recurse=False)):
                if buffer.is_floating_point():
                    torch.distributed.all_reduce(buffer)
                    buffer /= self.accelerator.num_processes

    def _objective(self, columns: list[Tensor], rows: np.ndarray) -> Tensor:
        examples = self.examples
        labels = None if examples.labels is None else self._put(examples.labels[rows].astype(np.int64))
        scores = None if examples.scores is None else self._put(examples.scores[rows].astype(np.float32))
        keys = [self._put(column.store.keys[column.items(rows)].view(np.int64)) for column in examples.columns]
        with torch.autocast(self.accelerator.device.type, enabled=False):  # distances need all their bits
            return self.task.objective([column.float() for column in columns], labels, scores, keys)

    def _embed(self, name: str, items: np.ndarray) -> tuple[Tensor, Backward]:
        """The embeddings of items, without a graph, and what sends gradients back to the encoder."""
        chunks, parts = self._parts(name, items)
        if not chunks:
            return torch.zeros(0, self._dim(name), device=self.accelerator.device), lambda gradient: None
        found = torch.empty(len(items), self._dim(name), device=self.accelerator.device)
        states = []
        for number in range(len(chunks)):
            states.append(_random_state(self.accelerator.device))
            # the graph of the last chunk is kept: it need not be computed again
            with torch.set_grad_enabled(number == len(chunks) - 1):
                last = next(parts)
            found[self._put(chunks[number])] = last.detach()

        def backward(gradient: Tensor) -> None:
            if not last.requires_grad:  # all of the encoder is frozen
                return
            last.backward(gradient[self._put(chunks[-1])])
            for chunk, state in zip(chunks[:-1], states, strict=False):
                with _random(state, self.accelerator.device):
                    self._run(name, items[chunk]).backward(gradient[self._put(chunk)])

        return found, backward

    def _parts(self, name: str, items: np.ndarray) -> tuple[list[np.ndarray], Iterator[Tensor]]:
        """The chunks, as positions in `items`, and their embeddings, each computed when it is asked for."""
        budget = self.budgets.get(name)
        everything = [np.arange(len(items))] if len(items) else []
        chunks = everything if budget is None else list(budget_chunks(self.embedders[name].costs(items), budget))
        return chunks, (self._run(name, items[chunk]) for chunk in chunks)

    def _run(self, name: str, items: np.ndarray) -> Tensor:
        with self.accelerator.autocast():
            return self.embedders[name].embed(items, self.accelerator.device).float()

    def _put(self, array: np.ndarray) -> Tensor:
        return on_device(array, self.accelerator.device)

    def _dim(self, name: str) -> int:
        return self.task.by_name[name].dim

    def _share(self, name: str, items: np.ndarray) -> list[np.ndarray]:
        """Which items each process embeds, as positions: as many of like cost for each."""
        processes = self.accelerator.num_processes
        if processes == 1:
            return [np.arange(len(items))]
        order = np.argsort(self.embedders[name].costs(items), kind='stable')
        return [np.sort(order[process::processes]) for process in range(processes)]

    def _gather(self, own: Tensor, shares: list[np.ndarray]) -> Tensor:
        """The embeddings of all processes, in the order of the items."""
        if len(shares) == 1:
            return own
        padded = own.new_zeros(max(map(len, shares)), own.shape[1])
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in shares]
        torch.distributed.all_gather(gathered, padded)
        together = own.new_empty(sum(map(len, shares)), own.shape[1])
        for share, part in zip(shares, gathered, strict=True):
            together[self._put(share)] = part[: len(share)]
        return together

    @contextmanager
    def _agreed_randomness(self, seed: int) -> Iterator[None]:
        """Miners may draw: all processes must draw the same."""
        if self.accelerator.num_processes == 1:
            yield
            return
        with torch.random.fork_rng(devices=_devices(self.accelerator.device), device_type='cuda'):
            torch.manual_seed(seed)
            yield


def has_batch_statistics(encoder: nn.Module) -> bool:
    """True if some of the encoder depends on the other items of a batch, so that chunks give other embeddings."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and any(p.requires_grad for p in module.parameters())
        for module in encoder.modules()
    )


def _devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == 'cuda' else []


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == 'cuda' else None


@contextmanager
def _random(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """The random numbers that were drawn from this state on, once more."""
    with torch.random.fork_rng(devices=_devices(device), device_type='cuda'):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield
