"""Fields of several types, told of in one sentence: pydantic has one for each type, and names it as Python does."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from training.numbers import integers


def either(sentence: str, model: type[BaseModel] | None = None, is_sent: bool = True) -> WrapValidator:
    """Beside the union that annotates a field.

    :param sentence: what to give.
    :param model: that of the types which is written as a dict; of one, its own fields are told.
    :param is_sent: whether values come over the wire, and not from a file, in which 1.0 is not 1.
    """

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if model is not None and isinstance(value, dict):
            return model.model_validate(value)
        try:
            return handler(integers(value) if is_sent else value)
        except ValidationError:
            raise PydanticCustomError('either', '{sentence}', {'sentence': sentence}) from None

    return WrapValidator(check)


Freeze = Annotated[bool | Annotated[int, Field(ge=0)], either('give true, false, or how many layer groups to freeze')]
GradientCache = Annotated[bool | Literal['auto'], either("give true, false or 'auto'")]
ADAPTERS = 'give true, false or the options of adapters, such as {"r": 8}'
Steps = Annotated[Annotated[int, Field(ge=1)] | Literal['auto'], either("give 'auto' or how many, 1 or more")]
