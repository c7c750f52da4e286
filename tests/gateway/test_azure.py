"""Azure's addressing: what a client's path means, and what the provider is asked with."""

from tests.gateway.conftest import Stand, chat
from tests.gateway.test_media import post_form
from tollkeeper.gateway.dialects.azure import Address, client_address


def test_paths() -> None:
    """Deployments, their siblings, and the newer paths that are OpenAI's own."""
    chat_of = "/openai/deployments/my-gpt/chat/completions"
    assert client_address(chat_of, b"api-version=2024-10-21") == Address("/v1/chat/completions", b"", "my-gpt")
    assert client_address("/openai/responses/resp_1", b"api-version=x&include=a") == Address(
        "/v1/responses/resp_1", b"include=a"
    )
    assert client_address("/openai/v1/files", b"limit=1") == Address("/v1/files", b"limit=1")
    assert client_address("/openai/deployments/a/b/../c", b"").path == "/v1/b/../c", "which is no endpoint"


async def test_an_azure_provider(stand: Stand) -> None:
    """The simulator's Azure side takes the key in `api-key` alone, and wants the version; the model is escaped."""
    reply = await stand.post(chat(model="azure-gpt"))
    assert reply.status == 200, reply.body
    reply = await post_form(stand, "/audio/transcriptions", {"model": "azure-whisper"}, file=("a.wav", b"x"))
    assert reply.status == 200, reply.body
    reply = await stand.post({"model": "azure-gpt", "input": "x"}, "/responses")
    assert reply.status == 200, reply.body
    got = await stand.post(None, f"/responses/{reply.json['id']}", method="GET")
    assert got.status == 200, got.body
    reply = await stand.post(chat(model="azure-../../models?x=1#"))
    assert reply.status == 404 and reply.json["error"]["code"] == "model_not_found"
    assert stand.governor.ends[-1].kind == "voided"
