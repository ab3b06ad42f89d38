"""What the sections of the configuration are made of: their base class and the ranges they share."""

from __future__ import annotations

from typing import Annotated, Literal

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
