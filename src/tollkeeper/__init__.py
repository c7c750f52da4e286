"""Tollkeeper: an LLM gateway with exact limits, hard budgets and proven logs.

The composition root is `app.py`; the rules are in `domain/`. ARCHITECTURE.md is the map.
"""

__version__ = "0.1.0"
