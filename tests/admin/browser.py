"""Somebody who reads pages and sends forms, over ASGI: keeps cookies, and takes hidden fields from the last page."""

import re
from collections.abc import Mapping
from html import unescape
from urllib.parse import urlencode

from tests.admin.conftest import TOKEN, Answer, Control


class Browser:
    def __init__(self, control: Control, address: str = "192.0.2.1", extra: Mapping[str, str] | None = None) -> None:
        self._control, self._address, self._extra = control, address, dict(extra or {})
        self.cookies: dict[str, str] = {}
        self.page = ""

    async def get(self, path: str) -> Answer:
        return self._kept(await self._control("GET", path, token=None, address=self._address, extra=self._headers()))

    async def post(self, path: str, fields: Mapping[str, str], **hidden: str) -> Answer:
        """A form; its hidden fields are those of the page, if not given."""
        body = urlencode({"form_token": self.hidden("form_token"), **fields, **hidden}).encode()
        headers = {**self._headers(), "content-type": "application/x-www-form-urlencoded"}
        answer = await self._control("POST", path, body=body, token=None, address=self._address, extra=headers)
        return self._kept(answer)

    async def sign_in(self, token: str = TOKEN) -> Answer:
        await self.get("/dashboard/login")
        return await self.post("/dashboard/login", {"token": token})

    def hidden(self, name: str) -> str:
        found = re.search(rf'name="{name}" value="([^"]*)"', self.page)
        return unescape(found[1]) if found else ""

    def _headers(self) -> dict[str, str]:
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return self._extra | ({"cookie": cookies} if cookies else {})

    def _kept(self, answer: Answer) -> Answer:
        if "set-cookie" in answer.headers:
            name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
            self.cookies[name] = value
            if "Max-Age=0" in answer.headers["set-cookie"]:
                del self.cookies[name]
        if answer.headers.get("content-type", "").startswith("text/html"):
            self.page = answer.body.decode()
        return answer
