"""The wire formats of the data plane, without any IO: what clients and providers write, read and rewritten."""

from tollkeeper.gateway.dialects.answer import Answer, read_answer, read_usage
from tollkeeper.gateway.dialects.base import ENDPOINTS, Call, Dialect, Endpoint, Sold
from tollkeeper.gateway.dialects.fault import (
    error_body,
    error_event,
    error_status,
    refusal_fault,
    refusal_message,
)
from tollkeeper.gateway.dialects.headers import limit_headers, money_headers, refusal_headers
from tollkeeper.gateway.dialects.reassemble import reassemble
from tollkeeper.gateway.dialects.request import parse, upstream_body
from tollkeeper.gateway.dialects.stream import StreamMeter

__all__ = [
    "ENDPOINTS",
    "Answer",
    "Call",
    "Dialect",
    "Endpoint",
    "Sold",
    "StreamMeter",
    "error_body",
    "error_event",
    "error_status",
    "limit_headers",
    "money_headers",
    "parse",
    "read_answer",
    "read_usage",
    "reassemble",
    "refusal_fault",
    "refusal_headers",
    "refusal_message",
    "upstream_body",
]
