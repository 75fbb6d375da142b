"""The table of pretrained models under the names that older code imports."""

from __future__ import annotations

from finetuner.models import BACKBONES, Backbone


def get_header() -> tuple[str, ...]:
    """The columns of the table of models."""
    return 'name', 'task', 'output_dim', 'architecture', 'description'


def get_row(backbone: Backbone) -> tuple[str, ...]:
    """One row of the table of models, as texts."""
    return tuple(str(getattr(backbone, column)) for column in get_header())


def list_model_classes() -> dict[str, Backbone]:
    """All models by name, those that the tables do not show among them."""
    return {backbone.name: backbone for backbone in BACKBONES}
