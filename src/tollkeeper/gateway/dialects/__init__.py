"""The wire formats of the data plane, without any IO: what clients and providers write, read and rewritten."""

from tollkeeper.gateway.dialects.answer import Answer, read_answer, read_usage
from tollkeeper.gateway.dialects.azure import PREFIX as AZURE_PREFIX
from tollkeeper.gateway.dialects.azure import client_address, provider_path
from tollkeeper.gateway.dialects.base import ENDPOINTS, Call, Dialect, Endpoint, Sold
from tollkeeper.gateway.dialects.fault import (
    error_body,
    error_event,
    error_status,
    refusal_fault,
    refusal_message,
)
from tollkeeper.gateway.dialects.headers import limit_headers, limit_lines, lines_of, money_lines, refusal_headers
from tollkeeper.gateway.dialects.kept import Kept, Named, find_route, kept_call, off_route, pairs_of
from tollkeeper.gateway.dialects.kept_answer import Produced, produced_by
from tollkeeper.gateway.dialects.parts import Part
from tollkeeper.gateway.dialects.reassemble import reassemble
from tollkeeper.gateway.dialects.references import Reference, references
from tollkeeper.gateway.dialects.request import LIMIT_FIELDS, parse, parse_upload, upstream_body
from tollkeeper.gateway.dialects.stream import StreamMeter

__all__ = [
    "AZURE_PREFIX",
    "ENDPOINTS",
    "LIMIT_FIELDS",
    "Answer",
    "Call",
    "Dialect",
    "Endpoint",
    "Kept",
    "Named",
    "Part",
    "Produced",
    "Reference",
    "Sold",
    "StreamMeter",
    "client_address",
    "error_body",
    "error_event",
    "error_status",
    "find_route",
    "kept_call",
    "limit_headers",
    "limit_lines",
    "lines_of",
    "money_lines",
    "off_route",
    "pairs_of",
    "parse",
    "parse_upload",
    "produced_by",
    "provider_path",
    "read_answer",
    "read_usage",
    "reassemble",
    "references",
    "refusal_fault",
    "refusal_headers",
    "refusal_message",
    "upstream_body",
]
