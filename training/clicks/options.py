"""How clicks become training data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from training.unions import either

BIASES = "give 'estimated', 'power', 'none', or a list of numbers above 0 and up to 1, from the first position on"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ClickOptions(BaseModel):
    """
    :param events: how much an event of each type counts; types that are not named count 0. None: all count 1.
    :param confidence: 'none', or 'windowed' by what happened to the results around, see `windowed_confidences`.
    :param window: results that it looks at.
    :param position_bias: how likely each position is looked at: 'none' as likely as all others, 'power' as
        1 / position^eta, 'estimated' from the sessions, or the propensities themselves, from the first position on.
    :param eta: of 'power', and where 'estimated' begins.
    :param max_weight: a click counts as the inverse of its position's propensity, and no more than this.
    :param negative_downsampling: the share of the results without a click that are learned from, at least one.
    :param clickless_is_irrelevant: take a session without clicks as one that is marked irrelevant.
    :param test_share: of the sessions, held out.
    """

    model_config = ConfigDict(extra='forbid')

    events: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    confidence: Literal['none', 'windowed'] = 'none'
    window: int = Field(default=3, ge=1)
    position_bias: Annotated[
        Literal['none', 'power', 'estimated']
        | Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)],
        either(BIASES, is_sent=False),
    ] = 'estimated'
    eta: Annotated[float, Field(ge=0, le=4)] = 1.0
    max_weight: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 10.0
    negative_downsampling: Annotated[float, Field(gt=0, le=1)] = 1.0
    clickless_is_irrelevant: bool = False
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
