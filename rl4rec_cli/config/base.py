"""What the sections of the configuration are made of: their base class and the ranges they share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
LARGEST_REWARD = 1e12
"""Largest size of a reward and of its weight. Rewards are added, squared and divided in float32, whose largest number
is 3.4e38: up to here the squares of millions of them have a finite sum, and a critic's gradients a finite norm."""
RewardWeight = Annotated[float, Field(ge=-LARGEST_REWARD, le=LARGEST_REWARD)]
RewardSize = Annotated[float, Field(ge=0.0, le=LARGEST_REWARD)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )

    def _fill_in(self, **values: Any) -> None:
        """Sets unset fields that follow from others. For validators, while the section is being made.

        A dump then holds these fields, and reads back equal. Two other ways fail: validators of strict JSON cannot
        change their input before it is read, and a returned replacement is lost if the class itself makes the section.
        """
        for name, value in values.items():
            object.__setattr__(self, name, value)
