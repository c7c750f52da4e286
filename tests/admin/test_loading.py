"""A gateway loads the framework of the control plane when somebody asks for what needs it, and serves meanwhile."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys
from pathlib import Path
import aiohttp
from tollkeeper.app import server
from tollkeeper.app.gateway import Gateway
from tollkeeper.settings import load

FRAMEWORK = {"fastapi", "starlette", "jinja2"}

async def main():
    settings = load(Path("tollkeeper.toml"))
    gateway = Gateway(settings)
    with server.bind("127.0.0.1", 0) as listening:
        await gateway.start()
        url = server.url_of(listening)
        listens = asyncio.Event()
        serving = asyncio.create_task(server.run(gateway, listening, settings.server, listens.set))
        await listens.wait()
        async with aiohttp.ClientSession() as session:
            async def ask(path, **headers):
                async with session.get(url + path, headers=headers) as answer:
                    await answer.read()
                    return answer.status
            admin = {"authorization": "Bearer an-admin-token-for-tests-of-32-chars"}
            probes = [await ask(path) for path in ("/", "/healthz", "/readyz", "/metrics", "/v1/models")]
            refused = await ask("/admin/v1/keys", authorization="Bearer wrong")
            print(*probes, refused, *sorted(FRAMEWORK & sys.modules.keys()))
            asked = ("/admin/v1/keys", "/docs", "/dashboard/login")
            waiting = [asyncio.create_task(ask(path, **admin)) for path in asked]
            while not gateway._admin._loading:
                await asyncio.sleep(0)
            served = 0
            while not gateway._admin._loaded:
                served += await ask("/healthz") == 200
            print(*await asyncio.gather(*waiting), served > 0, *sorted(FRAMEWORK & sys.modules.keys()))
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await gateway.stop()

asyncio.run(main())
"""
SETTINGS = """
[providers.openai]
base_url = "http://127.0.0.1:9/v1"
dialect = "openai"
prices = "openai"
"""


def test_the_framework_is_loaded_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "tollkeeper.toml").write_text(SETTINGS)
    environ = {
        "PATH": os.environ["PATH"],
        "TOLLKEEPER_DATA_DIR": str(tmp_path / "data"),
        "TOLLKEEPER_ADMIN_TOKEN": "an-admin-token-for-tests-of-32-chars",
        "TOLLKEEPER_DIGEST_KEY": "a-digest-key-for-tests-of-32-chars-",
        "OPENAI_API_KEY": "sk-test",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = [line for line in done.stdout.splitlines() if line.startswith("200 ")]
    assert before == "200 200 200 200 401 401", done.stderr
    assert after == "200 200 200 True fastapi jinja2 starlette", done.stderr
