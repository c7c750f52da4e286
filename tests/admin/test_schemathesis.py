"""The admin API against its own OpenAPI document, by schemathesis: a bounded, repeatable slice over real HTTP.

Every operation gets requests that fit its schema and requests that do not. No answer is a 5xx, or has a status, a
type or a body that the document does not tell; none takes what the schema forbids. What a schema cannot say (an
expiry must be in the future, a cursor must be of the list) may be refused with 400.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from schemathesis.core.parameters import ParameterLocation

from tests.servers.gateway import ADMIN_TOKEN, DIGEST_KEY, Program

EXAMPLES = 4
"""Of each operation and mode."""
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
HEADERS = {"authorization": f"Bearer {ADMIN_TOKEN}"}
THERE = {"key": "there", "team": "there", "organisation": "there", "token": "there"}
"""What requests are made about where they fit: a made up name would only ever be a 404."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environ = {"TOLLKEEPER_ADMIN_TOKEN": ADMIN_TOKEN, "TOLLKEEPER_DIGEST_KEY": DIGEST_KEY}
    folder: Path = tmp_path_factory.mktemp("gateway")
    gateway = Program(folder, ["serve", "--demo"], environ, "/readyz")
    yield gateway.url
    assert gateway.stop() == 0, gateway.log.read_text()


def furnish(schema: Any) -> None:
    """One of everything is there."""
    for path, body in (
        ("organisations", {"name": "there"}),
        ("teams", {"name": "there", "organisation": "there"}),
        ("keys", {"name": "there", "team": "there"}),
        ("admin-tokens", {"name": "there", "role": "viewer"}),
    ):
        case = schema[f"/admin/v1/{path}"]["POST"].Case(body=body, media_type="application/json")
        assert case.call(headers=HEADERS).status_code == 201, path


def try_out(operation: Any, mode: GenerationMode, seen: Callable[[str, int], None]) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        if mode is GenerationMode.NEGATIVE and not _wrong_beside_headers(case):
            return  # our own token is sent
        if mode is GenerationMode.POSITIVE:
            case.path_parameters = {name: THERE.get(name, value) for name, value in case.path_parameters.items()}
        response = case.call_and_validate(headers=HEADERS, checks=CHECKS)
        seen(operation.label, response.status_code)

    one()


def _wrong_beside_headers(case: Any) -> bool:
    return any(
        part.mode is GenerationMode.NEGATIVE and place is not ParameterLocation.HEADER
        for place, part in case.meta.components.items()
    )


def test_no_answer_is_other_than_the_document_says(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    furnish(schema)
    answered: dict[str, set[int]] = {}

    def seen(label: str, status: int) -> None:
        answered.setdefault(label, set()).add(status)

    found_ones: Any = schema.include(path_regex="^/admin/v1/").get_all_operations()
    operations = [found.ok() for found in found_ones]
    # the proof reads the whole store, one caller at a time
    operations = [each for each in operations if not each.path.endswith("/verify")]
    assert len(operations) >= 39
    # what ends something comes last, so that what comes before it still finds it
    for operation in sorted(operations, key=lambda each: each.path.endswith("/revoke")):
        for mode in GenerationMode:
            try:
                try_out(operation, mode, seen)
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, operation.label  # nothing that could be wrong
    well = {label for label, statuses in answered.items() if statuses & {200, 201, 204}}
    assert len(well) > 0.7 * len(operations), sorted(set(answered) - well)
