"""The admin API against its own OpenAPI document, by schemathesis: a bounded, repeatable slice over real HTTP.

Every operation gets requests that fit its schema and requests that do not. No answer is a 5xx, or has a status, a
type or a body that the document does not tell; none takes what the schema forbids, or refuses what it allows, but for
what a schema cannot say (`UNSAID`). Without a token, or with a wrong one, nothing is answered. Methods that the
document does not have are refused.

Of schemathesis' checks these are left out:
- `missing_required_header`: no header is required but the token's.
- `ignored_auth`: it tries wrong tokens from one address, which is told 429 after ten; each operation is asked so from
  an address of its own here.
- `unsupported_method`, `allow_header_conformance`: they speak only in its phase of thousands of requests; each path
  is asked with each other method here.
- `use_after_free`, `ensure_resource_availability`, `object_level_authorization`: they speak only in sequences of
  requests along links, which the document does not have. Nothing is deleted by this API; who sees whose objects is
  asked in test_access.py.
- `max_response_time`: asks of a clock.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from requests.adapters import HTTPAdapter
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


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
UNSAID = re.compile(
    r"name|owns|note|since|until|month|status|group_by|attempt"  # texts with a form, or of something that is there
    r"|starting_after"  # a place in this list
    r"|expires_at"  # in the future
    r"|amount_usd|cost_usd|id"
    r"|limits(\.(budgets|soft_budgets|warn_at|raises|windows|buckets|models|cost_cap_usd|\w+)(\.\w+)*)?"
)
"""What a request that fits the schema may still be refused for, as the answer's `param` must say."""


def try_out(
    operation: Any, mode: GenerationMode, seen: Callable[[str, int], None], guarded: Callable[[Any], None]
) -> None:
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
            case.headers = {name: value for name, value in case.headers.items() if name != "Idempotency-Key"}
        response = case.call(headers=HEADERS)
        unsaid = response.status_code == 400 and UNSAID.fullmatch(str(response.json()["error"]["param"]))
        case.validate_response(response, checks=[*CHECKS, *([] if unsaid else [checks.positive_data_acceptance])])
        if mode is GenerationMode.POSITIVE and response.status_code < 300:
            guarded(case)
        seen(operation.label, response.status_code)

    one()


def _wrong_beside_headers(case: Any) -> bool:
    return any(
        part.mode is GenerationMode.NEGATIVE and place is not ParameterLocation.HEADER
        for place, part in case.meta.components.items()
    )


def from_address(number: int) -> requests.Session:
    """A session whose requests come from an address of its own, which has ten tries of tokens of its own."""
    session = requests.Session()
    adapter = HTTPAdapter()
    adapter.init_poolmanager(1, 1, source_address=(f"127.0.1.{number}", 0))
    session.mount("http://", adapter)
    return session


def test_no_answer_is_other_than_the_document_says(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    furnish(schema)
    answered: dict[str, set[int]] = {}

    def seen(label: str, status: int) -> None:
        answered.setdefault(label, set()).add(status)

    asked_without: set[str] = set()

    def guarded(case: Any) -> None:
        """Once an operation: what was answered well is refused without a token, and with a wrong one."""
        label = case.operation.label
        if label not in asked_without:
            asked_without.add(label)
            with from_address(len(asked_without)) as session:
                for wrong in ({}, {"authorization": "Bearer tka_wrong"}, {"authorization": "Basic YTpi"}):
                    assert case.call(headers=wrong, session=session).status_code == 401, label

    found_ones: Any = schema.include(path_regex="^/admin/v1/").get_all_operations()
    operations = [found.ok() for found in found_ones]
    # the proof reads the whole store, one caller at a time
    operations = [each for each in operations if not each.path.endswith("/verify")]
    assert len(operations) >= 39
    # what ends something comes last, so that what comes before it still finds it
    for operation in sorted(operations, key=lambda each: each.path.endswith("/revoke")):
        for mode in GenerationMode:
            try:
                try_out(operation, mode, seen, guarded)
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, operation.label  # nothing that could be wrong
    well = {label for label, statuses in answered.items() if statuses & {200, 201, 204}}
    assert len(well) > 0.7 * len(operations), sorted(set(answered) - well)
    assert set(asked_without) == well


def test_other_methods_are_refused_with_those_that_are_known(url: str) -> None:
    """405, and `Allow` names the methods of the document, HEAD and OPTIONS apart."""
    paths = requests.get(f"{url}/openapi.json", timeout=30).json()["paths"]
    paths = {path: {m.upper() for m in its} for path, its in paths.items() if path.startswith("/admin/")}
    assert len(paths) > 20
    with requests.Session() as session:
        for path, known in paths.items():
            for method in set(METHODS) - known:
                there = re.sub(r"\{\w+\}", "there", path)
                answer = session.request(method, url + there, headers=HEADERS, timeout=30)
                assert answer.status_code == 405, (method, path)
                allowed = {name.strip() for name in answer.headers["allow"].split(",")}
                assert allowed - {"HEAD", "OPTIONS"} == known, (method, path)
