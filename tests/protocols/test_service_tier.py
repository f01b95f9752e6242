"""The service tier that an upstream says it billed, out of whole answers and streams, passed through and translated."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.adapters.endpoint import build_endpoint_adapter as _unused  # noqa: F401
