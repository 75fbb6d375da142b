"""A multilayer perceptron on vectors that a user brings, embeddings of another model for example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetuner.inference.description import DESCRIPTION, read_description, write_description
from finetuner.inference.encoder import Encoder
from finetuner.inference.head import describe_head, load_head, save_head
from finetuner.inference.layers import Dense
from finetuner.inference.layout import find_weights
from finetuner.inference.preprocessing import Modality
from finetuner.inference.tensors import TensorPreprocessor

ACTIVATIONS = {'relu': 'ReLU', 'tanh': 'Tanh', 'sigmoid': 'Sigmoid'}


class MLPEncoder(Encoder):
    """Linear layers with an activation between them; weights at random, by torch's seed.

    :param input_size: the length of the vectors that come in.
    :param hidden_sizes: the widths of the layers; the last is the length of an embedding.
    :param bias: whether the layers add a bias.
    :param activation: `relu`, `tanh`, `sigmoid`; None is none.
    :param l2: scale embeddings to L2 norm 1.
    :raises ValueError: a size or the activation is not one of these; the message names the option.
    """

    modality: ClassVar[Modality] = 'tensor'

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        bias: bool = True,
        activation: str | None = None,
        l2: bool = False,
        head: list[Dense] | None = None,
    ):
        super().__init__(head, normalize=l2)
        sizes = [input_size, *hidden_sizes]
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes) or len(sizes) < 2:
            raise ValueError(f'input_size {input_size!r} and hidden_sizes {hidden_sizes!r} must be positive integers')
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(f'unknown activation {activation!r}: it is None or one of {", ".join(ACTIVATIONS)}')
        if activation is not None and len(sizes) == 2:
            raise ValueError(f'activation {activation!r} stands between layers: give hidden_sizes two or more')
        self.input_size = input_size
        self.hidden_sizes = list(hidden_sizes)
        self.bias = bias
        self.activation = activation
        between = [ACTIVATIONS[activation] if activation else 'Identity'] * (len(hidden_sizes) - 1)
        self.layers = nn.ModuleList(
            Dense(*pair, bias, name)
            for pair, name in zip(zip(sizes, sizes[1:], strict=False), [*between, 'Identity'], strict=True)
        )

    @classmethod
    def load(cls, directory: str | Path) -> MLPEncoder:
        """Read a directory that `save` wrote.

        :raises ValueError: it is not one.
        """
        directory = Path(directory)
        content = read_description(directory)
        try:
            encoder = cls(
                content['preprocess']['input_size'],
                content['hidden_sizes'],
                content['bias'],
                content['activation'],
                content['normalize'],
                load_head(content['head'], directory),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f'{directory / DESCRIPTION} is incomplete: {error}') from error
        encoder.layers.load_state_dict(load_file(find_weights(directory)))
        return encoder.eval()

    @property
    def preprocessor(self) -> TensorPreprocessor:
        return TensorPreprocessor(self.input_size)

    @property
    def input_names(self) -> list[str]:
        return ['tensor']

    @property
    def backbone_dim(self) -> int:
        return self.hidden_sizes[-1]

    def pooled(self, tensor: Tensor) -> Tensor:  # type: ignore[override]
        """:param tensor: float32 [B, input_size]."""
        for layer in self.layers:
            tensor = layer(tensor)
        return tensor

    def layer_groups(self) -> list[nn.Module]:
        return list(self.layers)

    def save(self, directory: str | Path) -> Path:
        """Write `encoder.json` and `model.safetensors`, whose weights are named `<layer>.linear.weight`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        state = {name: weight.detach().cpu().contiguous() for name, weight in self.layers.state_dict().items()}
        save_file(state, directory / 'model.safetensors')
        save_head(self.head, directory)
        write_description(
            directory,
            library='mlp',
            modality='tensor',
            dim=self.dim,
            normalize=self.normalize,
            preprocess={'input_size': self.input_size},
            hidden_sizes=self.hidden_sizes,
            bias=self.bias,
            activation=self.activation,
            head=describe_head(self.head),
        )
        return directory
