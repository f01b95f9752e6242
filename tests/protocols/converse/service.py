"""Bedrock's published service model, as botocore has it: is a body what the API takes?"""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from typing import Any

from botocore.loaders import Loader
from botocore.model import ListShape, MapShape, OperationModel, ServiceModel, Shape, StringShape, StructureShape
from botocore.serialize import create_serializer
from botocore.validate import ParamValidator


@cache
def operation(name: str) -> OperationModel:
    return ServiceModel(Loader().load_service_model("bedrock-runtime", "service-2")).operation_model(name)


def check_request(body: bytes, model: str, target: str, *, name: str = "Converse") -> dict[str, Any]:
    """The body as JSON, if botocore would send the same for the same request, and every value is allowed."""
    wanted = operation(name)
    shape = wanted.input_shape
    assert shape is not None
    sent = json.loads(body)
    _check(sent, shape, "$", top=True)
    arguments = {"modelId": model, **_with_bytes(sent, shape)}
    report = ParamValidator().validate(arguments, shape)
    assert not report.has_errors(), report.generate_report()
    request = create_serializer("rest-json").serialize_to_request(arguments, wanted)
    assert json.loads(request["body"] or b"{}") == sent
    assert request["url_path"] == target
    return dict(sent)


def _check(value: Any, shape: Shape, at: str, *, top: bool = False) -> None:
    """What botocore leaves to the server: patterns, words, longest and largest. `top`: `modelId` is in the path."""
    limits = shape.metadata
    if isinstance(shape, StructureShape):
        if getattr(shape, "is_document_type", False):
            return
        unknown = set(value) - set(shape.members)
        assert not unknown, f"{at}: unknown {unknown}"
        missing = set(shape.required_members) - set(value) - ({"modelId"} if top else set())
        assert not missing, f"{at}: missing {missing}"
        for key, item in value.items():
            _check(item, shape.members[key], f"{at}.{key}")
    elif isinstance(shape, ListShape):
        for index, item in enumerate(value):
            _check(item, shape.member, f"{at}[{index}]")
    elif isinstance(shape, MapShape):
        assert len(value) <= limits.get("max", len(value)), at
        for key, item in value.items():
            _check(key, shape.key, f"{at}.{key}")
            _check(item, shape.value, f"{at}.{key}")
    elif isinstance(shape, StringShape):
        assert isinstance(value, str), at
        assert not shape.enum or value in shape.enum, f"{at}: {value}"
        assert "pattern" not in limits or re.fullmatch(limits["pattern"], value), f"{at}: {value}"
        assert limits.get("min", 0) <= len(value) <= limits.get("max", len(value)), f"{at}: length of {value}"
    elif "max" in limits and isinstance(value, (int, float)):
        assert limits.get("min", value) <= value <= limits["max"], f"{at}: {value}"


def _with_bytes(value: Any, shape: Shape) -> Any:
    """JSON as botocore's callers give it: bytes are not base64."""
    if getattr(shape, "is_document_type", False):
        return value
    if isinstance(shape, StructureShape):
        return {key: _with_bytes(item, shape.members[key]) for key, item in value.items()}
    if isinstance(shape, ListShape):
        return [_with_bytes(item, shape.member) for item in value]
    return base64.b64decode(value, validate=True) if shape.type_name == "blob" else value
