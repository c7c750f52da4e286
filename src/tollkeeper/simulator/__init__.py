"""A simulated provider: a real HTTP/1.1 server that speaks OpenAI's and Anthropic's wire formats and tells exactly
what it served. It knows no model, no price and no limit, and nothing of the gateway in front of it.

Reading order: `directives.py` (what a request can ask for), `asks.py` (a body becomes an `Ask`), `plan.py` (how many
tokens, which words), `openai.py` and `anthropic.py` (the wire formats), `service.py` (a request becomes a `Reply`),
`exchange.py` (a reply is performed, faults included), `connection.py` (HTTP), `account.py` (what was served),
`server.py` (start and stop).

Directives, anywhere in a request's body, steer one answer; the last one counts:

    [[sim input=374 output=44 cached=100 cache_write=0 reasoning=12 delay_ms=20 chunk_delay_ms=5
      status=429 retry_after=3 fault=reset after=2 tool=get_weather]]

See `directives.py` for each name, and `account.py` for what is billed when an answer is cut.
"""

from tollkeeper.simulator.account import Account, ServedRequest, Totals
from tollkeeper.simulator.server import Simulator

__all__ = ["Account", "ServedRequest", "Simulator", "Totals"]
