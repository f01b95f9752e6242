"""What the clients ask, and the tool and the form of answer they bring."""

from __future__ import annotations

from pydantic import BaseModel

SYSTEM = "You answer briefly."
QUESTION = "What is the answer?"
ASK_WEATHER = "What will the weather be?"


class get_weather(BaseModel):
    """The weather of the coming days."""

    city: str
    days: int


class Forecast(BaseModel):
    """Where, and for how long."""

    city: str
    days: int


WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
