"""The encoders of a run: loaded, given a head, frozen in part or fitted with adapters, as the config says."""

from __future__ import annotations

import logging
from pathlib import Path

from finetuner.artifact import open_artifact
from finetuner.inference.backbones import load_encoders
from finetuner.inference.clip import LogitScale, set_clip_logit_scale
from finetuner.inference.encoder import Encoder
from training.config import FitConfig
from training.freezing import freeze
from training.lora import add_adapters, merge_adapters
from training.losses.clip import CLIPLoss
from training.losses.siglip import SigLIPLoss
from training.task import Task

logger = logging.getLogger(__name__)


def load_for_training(config: FitConfig, artifact: Path | None = None) -> dict[str, Encoder]:
    """The encoders by name: 'model' alone, or 'clip-text' and 'clip-vision'.

    :param artifact: the zip or folder to go on from; None starts from `config.model`.
    :raises ValueError: the model is not to be found, or an option does not fit it.
    """
    source = config.model if artifact is None else open_artifact(artifact).directory / 'models'
    encoders = load_encoders(source, options=config.model_options or {}, max_length=config.max_length)
    for encoder in encoders.values():
        if config.output_dim is not None:
            encoder.add_head(config.output_dim)
        if config.freeze:
            freeze(encoder, config.freeze)
        if config.lora:
            add_adapters(encoder, config.lora)
        if config.compile:
            encoder.compile(dynamic=True)
        trained = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
        everything = sum(parameter.numel() for parameter in encoder.parameters())
        logger.info('Training %s of %s weights of the model', f'{trained:,}', f'{everything:,}')
    return encoders


def for_export(task: Task) -> dict[str, Encoder]:
    """The encoders as their libraries know them: on the CPU, in evaluation, adapters merged into the weights, and of
    CLIP models the temperature that the loss has learned."""
    encoders = {name: encoder.cpu().eval() for name, encoder in task.by_name.items()}
    for encoder in encoders.values():
        merge_adapters(encoder)
        encoder._compiled_call_impl = None
    learned = [part for part in task.objective.modules() if isinstance(part, CLIPLoss | SigLIPLoss)]
    if len(encoders) > 1 and learned:  # of several the first: of MatryoshkaLoss by default the whole length
        scale, bias = learned[0].logit_scale, getattr(learned[0], 'logit_bias', None)
        set_clip_logit_scale(encoders, LogitScale(scale.item(), None if bias is None else bias.item()))
    return encoders
