"""Azure OpenAI's addressing on both sides, through a whole gateway and the SDK's own Azure class."""

from collections.abc import Iterator
from typing import NamedTuple

import openai
import pytest

from tests.gateway.test_media import wav
from tests.servers.gateway import GatewayProcess, SimulatorProcess

AZURE = """
[providers.azure]
base_url = "{url}/openai"
dialect = "openai"
azure_api_version = "2025-04-01-preview"
api_key_env = "AZURE_KEY"
prices = "azure"
models = ["my-*"]
[models.my-mini]
priced_as = "gpt-4o-mini"
[models.my-whisper]
per_audio_hour_usd = "0.36"
"""


class Deployment(NamedTuple):
    url: str
    key: str


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The `azure` provider is the simulator's Azure side, which wants an `api-version`."""
    folder = tmp_path_factory.mktemp("azure")
    simulator = SimulatorProcess(folder)
    environ = {"AZURE_KEY": "azure-secret"}
    gateway = GatewayProcess(folder / "gateway", simulator.url, environ, AZURE.format(url=simulator.url))
    limits = {"rpm": 1000, "budgets": {"month": "10"}}
    yield Deployment(gateway.url, str(gateway.admin("POST", "/keys", {"name": "key", "limits": limits})["secret"]))
    assert gateway.stop() == 0
    simulator.kill()


def test_the_sdks_azure_class(deployment: Deployment) -> None:
    """The deployment is the model; chat, streams, forms, answers and their objects; each is charged and bounded."""
    with openai.AzureOpenAI(
        azure_endpoint=deployment.url, api_key=deployment.key, api_version="2024-10-21"
    ) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="my-mini", messages=[{"role": "user", "content": "Hello [[sim input=3 output=7]]"}]
        )
        assert raw.headers["x-tollkeeper-cost-usd"] == "0.00000465", "at the price of the model that it is"
        chunks = list(
            client.chat.completions.create(
                model="my-mini", messages=[{"role": "user", "content": "Hello"}], stream=True
            )
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks)
        assert client.audio.transcriptions.create(model="my-whisper", file=("a.wav", wav(500))).text
        made = client.responses.create(model="my-mini", input="Hello")
        assert client.responses.retrieve(made.id).output_text == made.output_text
        assert client.files.retrieve(
            client.files.create(
                file=("a.txt", b"x"), purpose="assistants", extra_headers={"x-tollkeeper-provider": "azure"}
            ).id
        )
        assert client.models.list().data


def test_the_paths_model_counts(deployment: Deployment) -> None:
    """A body's own `model` does not lead elsewhere."""
    with openai.AzureOpenAI(
        azure_endpoint=deployment.url, api_key=deployment.key, api_version="x", azure_deployment="my-mini"
    ) as client:
        answer = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hello"}])
        assert answer.model == "my-mini"


def test_wrong_keys_and_names(deployment: Deployment) -> None:
    with (
        openai.AzureOpenAI(azure_endpoint=deployment.url, api_key="tk_wrong", api_version="x") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model="my-mini", messages=[{"role": "user", "content": "Hello"}])
