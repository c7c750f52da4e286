"""LiteLLM's config.yaml → providers and models of `tollkeeper.toml`, as text, and what is not carried over.

Given the decoded file; it reads nothing and passes no secret on: a key that stands in the file is named as a variable
that must be set. What a provider's prefix stands for is `PROVIDERS`: those that speak one of our two dialects.
"""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

PROVIDERS: Final[Mapping[str, tuple[str, str]]] = {
    "openai": ("https://api.openai.com/v1", "openai"),
    "anthropic": ("https://api.anthropic.com/v1", "anthropic"),
    "azure": ("", "openai"),
    "azure_ai": ("", "openai"),
    "cerebras": ("https://api.cerebras.ai/v1", "openai"),
    "custom_openai": ("", "openai"),
    "deepseek": ("https://api.deepseek.com/v1", "openai"),
    "fireworks_ai": ("https://api.fireworks.ai/inference/v1", "openai"),
    "gemini": ("https://generativelanguage.googleapis.com/v1beta/openai", "openai"),
    "groq": ("https://api.groq.com/openai/v1", "openai"),
    "hosted_vllm": ("", "openai"),
    "mistral": ("https://api.mistral.ai/v1", "openai"),
    "ollama": ("http://localhost:11434/v1", "openai"),
    "ollama_chat": ("http://localhost:11434/v1", "openai"),
    "openrouter": ("https://openrouter.ai/api/v1", "openai"),
    "perplexity": ("https://api.perplexity.ai", "openai"),
    "together_ai": ("https://api.together.xyz/v1", "openai"),
    "xai": ("https://api.x.ai/v1", "openai"),
}
"""Prefix → base URL (empty: `api_base` must say) and dialect."""
KEYLESS: Final = ("ollama", "ollama_chat", "hosted_vllm", "custom_openai")
STRATEGIES: Final = {
    "simple-shuffle": "weighted",
    "least-busy": "busy",
    "latency-based-routing": "latency",
}
KNOWN: Final = frozenset(
    (
        *("model", "api_base", "api_key", "api_version", "custom_llm_provider", "weight"),
        *("rpm", "tpm", "max_parallel_requests", "input_cost_per_token", "output_cost_per_token"),
    )
)
"""Of `litellm_params`."""
_VARIABLE: Final = "os.environ/"
Table = dict[str, Any]


class Converted(msgspec.Struct, frozen=True):
    """`toml` holds nothing where there was nothing to convert. `variables` must be set for it to work."""

    toml: str
    models: int
    notes: tuple[str, ...]
    variables: tuple[str, ...]


def convert(config: Mapping[str, Any]) -> Converted:
    """The whole file. What cannot be read as LiteLLM would read it is told, not guessed."""
    conversion = _Conversion()
    for index, entry in enumerate(_list(config.get("model_list"))):
        conversion.entry(index, entry if isinstance(entry, Mapping) else {})
    conversion.routing(config)
    return conversion.result()


class _Conversion:
    def __init__(self) -> None:
        self.providers: dict[str, Table] = {}
        self.models: dict[str, Table] = {}
        self.notes: list[str] = []
        self.variables: dict[str, None] = {}

    def entry(self, index: int, entry: Mapping[str, Any]) -> None:
        """One of `model_list`: a deployment."""
        name, params = entry.get("model_name"), _table(entry.get("litellm_params"))
        written = params.get("model")
        where = f"model_list[{index}] {name}"
        if not isinstance(name, str) or not isinstance(written, str):
            self.notes.append(f"model_list[{index}] has no model_name or no litellm_params.model; it is left out")
            return
        prefix, upstream = _split(written, params)
        if prefix not in PROVIDERS:
            self.notes.append(f"{where}: no provider is known for {written!r}; it is left out")
            return
        provider = self._provider(where, prefix, params)
        if provider is None:
            return
        if "*" in name:
            self.notes.append(
                f"{where}: a wildcard has no entry of its own; every model of it answers to `{provider}/<model>`"
            )
            return
        unknown = sorted(set(params) - KNOWN)
        self.notes += [f"{where}: `{parameter}` is not carried over" for parameter in unknown]
        info = _table(entry.get("model_info"))
        model = self.models.setdefault(name, {"deployments": []})
        deployment: Table = {"provider": provider}
        if upstream != name:
            deployment["upstream_model"] = upstream
        for ours, theirs in (
            ("weight", "weight"),
            ("requests_per_minute", "rpm"),
            ("tokens_per_minute", "tpm"),
            ("concurrency", "max_parallel_requests"),
        ):
            if (limit := _whole(params.get(theirs, entry.get(theirs)))) is not None:
                deployment[ours] = limit
        model["deployments"].append(deployment)
        self._facts(where, model, {**info, **params})

    def _provider(self, where: str, prefix: str, params: Mapping[str, Any]) -> str | None:
        """The name of the provider with this address and key, which is made the first time."""
        base_url, dialect = PROVIDERS[prefix]
        base = _variable_or(params.get("api_base")) or base_url
        if not base or base.startswith(_VARIABLE):
            self.notes.append(f"{where}: its api_base must stand in the file; it is left out")
            return None
        table: Table = {"base_url": _address(prefix, base), "dialect": dialect}
        variable = self._key(where, prefix, params.get("api_key"))
        if variable is not None:
            table["api_key_env"] = variable
        same = [
            name for name, known in self.providers.items() if {**known, "models": None} == {**table, "models": None}
        ]
        if same:
            return same[0]
        plain = re.sub(r"[^a-z0-9]+", "-", prefix)
        taken = sum(name == plain or name.startswith(f"{plain}-") for name in self.providers)
        name = plain if not taken else f"{plain}-{taken + 1}"
        self.providers[name] = {**table, "models": []}
        return name

    def _key(self, where: str, prefix: str, written: Any) -> str | None:
        default = f"{prefix.upper()}_API_KEY"
        if isinstance(written, str) and written.startswith(_VARIABLE):
            variable = written.removeprefix(_VARIABLE)
        elif prefix in KEYLESS and not (isinstance(written, str) and written.startswith("sk-")):
            return None
        else:
            variable = default
            if written:
                self.notes.append(f"{where}: its key stands in the file; put it into the variable {variable}")
        self.variables[variable] = None
        return variable

    def _facts(self, where: str, model: Table, told: Mapping[str, Any]) -> None:
        """Prices and sizes that LiteLLM was told."""
        prices = [_per_million(told.get(f"{kind}_cost_per_token")) for kind in ("input", "output")]
        facts: Table = {}
        if None not in prices:
            facts["input_usd"], facts["output_usd"] = prices
        elif prices != [None, None]:
            self.notes.append(f"{where}: one price without the other is not carried over")
        for ours, theirs in (("context_window", "max_input_tokens"), ("max_output_tokens", "max_output_tokens")):
            if (size := _whole(told.get(theirs))) is not None:
                facts[ours] = size
        for name, value in facts.items():
            if model.setdefault(name, value) != value:
                self.notes.append(
                    f"{where}: its {name} differs from that of another deployment, which counts for all"
                )
        if told.get("access_groups"):
            self.notes.append(f"{where}: there are no access groups; give the models to keys and teams by name")

    def routing(self, config: Mapping[str, Any]) -> None:
        """Strategy, aliases and fallbacks."""
        router, library = _table(config.get("router_settings")), _table(config.get("litellm_settings"))
        strategy = router.get("routing_strategy", "simple-shuffle")
        if strategy not in STRATEGIES:
            self.notes.append(f"routing_strategy {strategy!r} has no equal; deployments are chosen by weight")
        for model in self.models.values():
            if len(model["deployments"]) > 1 and STRATEGIES.get(strategy, "weighted") != "weighted":
                model["strategy"] = STRATEGIES[strategy]
        self._aliases(_table(router.get("model_group_alias")))
        for fallbacks in (*_list(router.get("fallbacks")), *_list(library.get("fallbacks"))):
            for name, targets in _table(fallbacks).items():
                self._fallbacks(name, _list(targets))
        for setting in ("context_window_fallbacks", "content_policy_fallbacks", "default_fallbacks"):
            if router.get(setting) or library.get(setting):
                self.notes.append(f"{setting} is not carried over")
        if config.get("include"):
            self.notes.append("`include` is not followed: convert the files that it names one by one")
        timezone = _table(config.get("general_settings")).get("timezone") or library.get("timezone")
        if timezone not in (None, "UTC"):
            self.notes.append(f"budgets begin in UTC here, not in {timezone}")

    def _aliases(self, aliases: Mapping[str, Any]) -> None:
        for alias, written in aliases.items():
            target = written.get("model") if isinstance(written, Mapping) else written
            if target in self.models and alias not in self.models:
                same = self.models[target]
                deployments = [{"upstream_model": target, **deployment} for deployment in same["deployments"]]
                self.models[alias] = {**same, "deployments": deployments}
            else:
                self.notes.append(f"model_group_alias {alias}: {target!r} is not carried over")

    def _fallbacks(self, name: str, targets: Sequence[Any]) -> None:
        if name in self.models and all(target in self.models for target in targets):
            self.models[name]["fallbacks"] = list(targets)
        else:
            self.notes.append(f"fallbacks of {name!r}: only those between models above are carried over")

    def result(self) -> Converted:
        lines: list[str] = []
        for name, provider in self.providers.items():
            lines += _toml(("providers", name), provider)
        for name, model in self.models.items():
            lines += _toml(("models", name), _plain(model))
        return Converted("\n".join(lines), len(self.models), tuple(self.notes), tuple(self.variables))


def _plain(model: Table) -> Table:
    """A model with one deployment without limits needs no list of them."""
    deployments = model["deployments"]
    rest = {name: value for name, value in model.items() if name != "deployments"}
    if len(deployments) == 1 and deployments[0].keys() <= {"provider", "upstream_model"}:
        return {**deployments[0], **rest}
    return {**rest, "deployments": deployments}


def _split(written: str, params: Mapping[str, Any]) -> tuple[str, str]:
    """`azure/gpt-4o` → prefix and upstream model; a name without a prefix is told by its beginning."""
    named = params.get("custom_llm_provider")
    if isinstance(named, str):
        return named, written.removeprefix(f"{named}/")
    prefix, slash, rest = written.partition("/")
    if slash:
        return prefix, rest
    if written.startswith("claude"):
        return "anthropic", written
    return ("openai" if re.match(r"gpt-|o\d|chatgpt-|text-embedding-", written) else ""), written


def _address(prefix: str, base: str) -> str:
    """The base URL as we want it, up to and including the version."""
    base = base.rstrip("/")
    if prefix in ("azure", "azure_ai") and not base.endswith("/v1"):
        return f"{base.removesuffix('/openai')}/openai/v1"
    if prefix in ("ollama", "ollama_chat", "anthropic") and not base.endswith("/v1"):
        return f"{base}/v1"
    return base


def _variable_or(written: Any) -> str:
    return written if isinstance(written, str) else ""


def _per_million(written: Any) -> str | None:
    """A price per token → USD per million tokens, exact."""
    if written is None or isinstance(written, bool):
        return None
    try:
        price = Decimal(str(written)) * 1_000_000
    except InvalidOperation:
        return None
    return f"{price.normalize():f}" if price.is_finite() and price >= 0 else None


def _whole(written: Any) -> int | None:
    return written if isinstance(written, int) and not isinstance(written, bool) and written > 0 else None


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _toml(path: Sequence[str], table: Table) -> list[str]:
    header = ".".join(part if re.fullmatch(r"[\w-]+", part, re.ASCII) else _text(part) for part in path)
    return [f"[{header}]", *(f"{name} = {_value(value)}" for name, value in table.items()), ""]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_value(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list):
        if any(isinstance(inner, Mapping) for inner in value):
            return "[\n" + "".join(f"    {_value(inner)},\n" for inner in value) + "]"
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return _text(value) if isinstance(value, str) else str(value)


def _text(text: str) -> str:
    """A TOML string; JSON's escapes are TOML's."""
    return json.dumps(text)
