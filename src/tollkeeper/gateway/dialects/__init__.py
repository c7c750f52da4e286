"""The wire formats of the data plane, without any IO.

request.py   parse(endpoint, body: bytes) -> Call                                raises RequestError
             upstream_body(call, *, model: str, output_limit: tuple[str, int] | None = None) -> bytes
answer.py    read_answer(endpoint, body: bytes) -> Answer                        usage and the model echoed
             read_usage(endpoint, body: bytes) -> Usage | None
stream.py    StreamMeter(endpoint, *, keep_usage_chunk: bool)                    .feed(chunk) .finish() .usage .model .complete .error
fault.py     error_status(fault) -> int
             error_body(dialect, fault, message, param=None, request_id=None) -> bytes
             error_event(dialect, fault, message, param=None, request_id=None) -> bytes
             refusal_fault(refusal) -> Fault, refusal_message(refusal) -> str
headers.py   limit_headers(dialect, states, now_us) -> list[tuple[bytes, bytes]]
             refusal_headers(refusal) -> list[tuple[bytes, bytes]]
             money_headers(cost_nano: int | None, states) -> list[tuple[bytes, bytes]]
"""
