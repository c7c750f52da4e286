"""Limits as a form: what is there for each field, and what of it was changed when the form comes back.

A field beside which `was_<name>` says what it held is left alone if it still holds that, so two people who edit one
key at the same time do not undo each other. The change itself is the API's (`models.LimitsChange`).
"""

from typing import Any, Final

from pydantic import ValidationError

from tollkeeper.admin.dashboard.http import Form
from tollkeeper.admin.models import LimitsChange
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.periods import Period
from tollkeeper.domain.words import Words

NUMBERS: Final = ("rpm", "tpm", "max_parallel")
LISTS: Final = ("models", "windows", "buckets")
BUDGETS: Final = ("budgets", "soft_budgets")


def policy_fields(limits: Words) -> dict[str, str]:
    """The form's fields for limits in the words of the API."""
    fields = {name: "" if limits[name] is None else str(limits[name]) for name in NUMBERS}
    fields |= {name: "\n".join(limits[name] or ()) for name in LISTS}
    fields |= {f"{kind}_{period}": limits[kind].get(period, "") for kind in BUDGETS for period in Period}
    fields["cost_cap_usd"] = limits["cost_cap_usd"] or ""
    fields["log_bodies"] = limits["log_bodies"] or ""
    return fields


EMPTY: Final[Words] = {
    **dict.fromkeys((*NUMBERS, *LISTS, "cost_cap_usd", "log_bodies")),
    **{kind: {} for kind in BUDGETS},
}
"""The limits of something that has none."""


def is_changed(form: Form, name: str) -> bool:
    """Whether a field holds something else than it did."""
    return _lines(form.text(name)) != _lines(form.text(f"was_{name}"))


def limits_change(form: Form) -> LimitsChange | None:
    """What was changed. None: nothing. Raises InvalidInput."""
    given: dict[str, Any] = {}
    for name in filter(lambda name: is_changed(form, name), NUMBERS):
        given[name] = _whole(form.text(name), name)
    for name in filter(lambda name: is_changed(form, name), LISTS):
        lines = _lines(form.text(name))
        given[name] = lines if lines or name != "models" else None
    for name in filter(lambda name: is_changed(form, name), ("cost_cap_usd", "log_bodies")):
        given[name] = form.given(name)
    for kind in BUDGETS:
        periods = [period for period in Period if is_changed(form, f"{kind}_{period}")]
        if periods:
            given[kind] = {period.value: form.given(f"{kind}_{period}") for period in periods}
    if not given:
        return None
    try:
        return LimitsChange(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _whole(text: str, name: str) -> int | None:
    if not text:
        return None
    try:
        return int(text.replace(",", "").replace("_", ""))
    except ValueError:
        raise InvalidInput(f"{name}: {text!r} is not a whole number") from None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
