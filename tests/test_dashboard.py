"""The dashboard in a browser, over a whole gateway: what people do, what it shows, and that everybody can use it.

Requests that a page makes of any other address, refusals by the content policy and errors of scripts fail every test.
"""

import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.servers.chromium import axe_source, chromium
from tests.servers.gateway import ADMIN_TOKEN, GatewayProcess, SimulatorProcess
from tollkeeper.domain.money import usd

__all__ = ["chromium"]
PAGES = (
    *("", "/keys", "/keys/ann", "/keys/new", "/keys/ann/edit", "/teams", "/teams/research", "/teams/research/edit"),
    *("/organisations", "/organisations/Acme", "/usage?range=7d&by=key", "/logs", "/delivery", "/delivery/proof"),
    *("/charges", "/audit", "/session", "/keys/none"),
    *("/alerts", "/tokens", "/tokens/new", "/tokens/reader"),
)
DEADLINE_S = 60.0
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 800}


class Served:
    """A gateway with an organisation, a team, two keys, some answered and some refused requests, and a correction."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway, self.url = gateway, gateway.url + "/dashboard"
        gateway.admin("POST", "/organisations", {"name": "Acme", "limits": {"budgets": {"month": "50.00"}}})
        gateway.admin("POST", "/teams", {"name": "research", "organisation": "Acme", "limits": {"tpm": 90_000}})
        belongs = {"organisation": "Acme", "team": "research"}
        limits = {"budgets": {"month": "12.50", "day": "2.00"}, "rpm": 100}
        self.ann = str(gateway.admin("POST", "/keys", {"name": "ann", "limits": limits, **belongs})["secret"])
        self.bob = str(gateway.admin("POST", "/keys", {"name": "bob", "limits": {"rpm": 1}})["secret"])
        for _ in range(3):
            assert self.ask(self.ann) == 200
        assert [self.ask(self.bob), self.ask(self.bob)] == [200, 429]
        adjustment = {"scope": "key", "name": "bob", "amount_usd": "0.75", "note": "agreed by mail"}
        gateway.admin("POST", "/corrections", adjustment)
        warned = {"soft_budgets": {"month": "1.00"}, "warn_at": {"month": ["0.000001"]}}
        carl = str(gateway.admin("POST", "/keys", {"name": "carl", "limits": warned})["secret"])
        assert self.ask(carl) == 200
        gateway.admin("POST", "/admin-tokens", {"name": "reader", "role": "viewer"})
        gateway.admin("POST", "/sync")
        deadline = time.monotonic() + DEADLINE_S
        while len(gateway.admin("GET", "/logs")["data"]) < 6 or not gateway.admin("GET", "/alerts")["data"]:  # type: ignore[arg-type]
            assert time.monotonic() < deadline, "the log records were not delivered"
            time.sleep(0.05)

    def ask(self, secret: str) -> int:
        """One request; its status."""
        body = {"model": "gpt-4o-mini", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
        request = urllib.request.Request(
            f"{self.gateway.url}/v1/chat/completions",
            data=msgspec.json.encode(body),
            headers={"authorization": f"Bearer {secret}", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    def logged_today(self) -> list[Any]:
        """Today's records."""
        found: list[Any] = self.gateway.admin("GET", f"/logs?limit=1000&since={datetime.now(UTC).date()}")["data"]  # type: ignore[assignment]
        return found

    def rows(self, sql: str) -> list[Any]:
        """What the database itself says."""
        (path,) = Path(self.gateway.log.parent, "data").glob("*.db")
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("dashboard")
    simulator = SimulatorProcess(folder)
    gateway = GatewayProcess(
        folder / "gateway", simulator.url, {}, "[logs]\nrefusals = true\nflush_interval_s = 0.2\n"
    )
    yield Served(gateway)
    gateway.kill()
    simulator.kill()


Open = Callable[..., Page]


@pytest.fixture
def opened(chromium: Browser, served: Served) -> Iterator[Open]:
    """Opens a page in a context of its own. Afterwards: nothing was loaded from elsewhere, nothing was refused."""
    contexts: list[BrowserContext] = []
    said: list[str] = []

    def open_page(*, token: str | None = ADMIN_TOKEN, **options: Any) -> Page:
        context = chromium.new_context(**options)
        context.set_default_timeout(DEADLINE_S * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("request", lambda r: None if r.url.startswith(served.url) else said.append(f"asked for {r.url}"))
        if token is not None:
            page.goto(served.url)
            page.get_by_label("Admin token").fill(token)
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
        return page

    yield open_page
    for context in contexts:
        context.close()
    # a page that answers 4xx is told on the console, too; the tests that ask for one look at it
    assert [text for text in said if "Failed to load resource" not in text] == []


def value(page: Page, selector: str) -> str:
    """The exact amount beside what is shown."""
    found = page.locator(f"{selector} data").first.get_attribute("value")
    assert found is not None
    return found


def test_figures_are_the_databases(served: Served, opened: Open) -> None:
    """Spend by key and in all, read from the tables themselves; and of logged requests as their records say.

    First of all, while no page has a report yet: one is kept for some seconds."""
    served.gateway.admin("POST", "/sync")
    page = opened()
    columns = "key_id, requests, input_tokens, cached_tokens, output_tokens, cost_nano"
    rows = served.rows(f"SELECT {columns} FROM monthly_usage_summary")
    assert len(rows) >= 2
    page.goto(served.url)
    assert value(page, "#month-spend") == usd(sum(row[5] for row in rows))
    deadline = time.monotonic() + DEADLINE_S
    while True:
        records = served.logged_today()
        logged = (usd(sum(r["cost_nano"] for r in records)), str(sum(not r["admitted"] for r in records)))
        if (value(page, "#today-spend"), value(page, "#today-refused")) == logged:
            break
        assert time.monotonic() < deadline, logged  # a report may be some seconds old
        page.reload()
    assert logged[1] != "0"
    page.goto(served.url + "/usage")
    for key_id, *counts, cost_nano in rows:
        shown = page.locator(f'#accounts tr[data-key="{key_id}"] data')
        values = [shown.nth(number).get_attribute("value") for number in range(shown.count())]
        assert values == [*map(str, counts), usd(cost_nano)]
    limits = served.gateway.admin("GET", "/limits/ann")["limits"]
    page.goto(served.url + "/keys/ann")
    found = page.locator("#limits tbody tr")
    for number, limit in enumerate(limits):  # type: ignore[arg-type, var-annotated]
        shown = found.nth(number).locator("data")
        if limit["limit_kind"] == "budget":
            assert [shown.nth(i).get_attribute("value") for i in (0, 1)] == [limit["used"], limit["limit"]]


def test_signing_in(served: Served, opened: Open) -> None:
    """A wrong token is told; scripts cannot read the session; after signing out there is none."""
    page = opened(token=None)
    page.goto(served.url + "/keys")
    page.get_by_label("Admin token").fill("tka_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not, or no longer, known")
    page.get_by_label("Admin token").fill(ADMIN_TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Keys")
    assert page.evaluate("document.cookie") == ""
    cookies = {cookie["name"]: cookie for cookie in page.context.cookies()}
    session = cookies["tollkeeper_session"]
    assert session["httpOnly"] and session["sameSite"] == "Strict" and ADMIN_TOKEN not in session["value"]
    page.get_by_role("button", name="Sign out").click()
    page.goto(served.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_signing_out_everywhere_ends_the_sessions_of_other_browsers(served: Served, opened: Open) -> None:
    made = served.gateway.admin("POST", "/admin-tokens", {"name": "eve", "role": "viewer"})
    here, there = opened(token=str(made["secret"])), opened(token=str(made["secret"]))
    here.get_by_role("link", name="eve").click()
    here.get_by_role("button", name="Sign out everywhere").click()
    expect(here.get_by_role("heading", level=1)).to_have_text("Sign in")
    there.get_by_role("link", name="Teams").click()
    expect(there.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_a_key_from_its_form_to_its_end(served: Served, opened: Open) -> None:
    """Its secret is shown once and works; edited, it is limited; revoked, it is refused."""
    page = opened()
    page.get_by_role("link", name="Keys", exact=True).click()
    page.get_by_role("link", name="Create a key").click()
    page.get_by_label("Name").fill("carla")
    page.get_by_label("A month", exact=True).fill("1.00")
    page.get_by_role("button", name="Create the key").click()
    secret = page.get_by_label("Secret").input_value()
    assert secret.startswith("tk_")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    deadline = time.monotonic() + DEADLINE_S
    while served.ask(secret) != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    page.get_by_role("link", name="I have it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("carla")
    assert secret not in page.content() and secret[-4:] in page.content()
    page.get_by_role("link", name="Edit").click()
    page.get_by_label("Requests a minute").fill("1")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("Saved")
    assert served.gateway.admin("GET", "/keys/carla")["limits"]["rpm"] == 1  # type: ignore[index]
    page.get_by_label("Revoke it for good").fill("carla")
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("status")).to_contain_text("Revoked")
    deadline = time.monotonic() + DEADLINE_S
    while served.ask(secret) != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_token_made_here_signs_in_and_sees_its_own(served: Served, opened: Open) -> None:
    page = opened()
    page.get_by_role("link", name="Tokens").click()
    page.get_by_role("link", name="Create a token").click()
    page.get_by_label("Name").fill("olga")
    page.get_by_label("Role").select_option("owner")
    page.get_by_label("Owns").fill(str(served.gateway.admin("GET", "/keys/ann")["id"]))
    page.get_by_role("button", name="Create the token").click()
    secret = page.get_by_label("Secret").input_value()
    page.get_by_role("link", name="I have it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("olga")
    olga = opened(token=secret)
    expect(olga.get_by_role("link", name="Tokens")).to_have_count(0)
    olga.goto(served.url + "/keys")
    expect(olga.get_by_role("link", name="ann", exact=True)).to_be_visible()
    expect(olga.get_by_role("link", name="bob", exact=True)).to_have_count(0)


def test_alerts_and_files(served: Served, opened: Open) -> None:
    """A threshold that was reached is on the page; what a page shows is in its file."""
    page = opened()
    page.get_by_role("link", name="Alerts").click()
    told = page.locator("tbody tr", has_text="no webhook").first
    expect(told.locator("data").first).to_have_attribute("value", "0.000001")
    page.get_by_role("link", name="Logs").click()
    with page.expect_download() as started:
        page.get_by_role("link", name="Download CSV").click()
    assert started.value.suggested_filename == "logs.csv"
    lines = Path(started.value.path()).read_text().splitlines()
    ids = [record["request_id"] for record in served.logged_today()]
    assert len(ids) >= 6 and [line for line in lines[1:] if not any(i in line for i in ids)] == []
    assert len(lines) > page.locator("#records tbody tr").count()


def test_a_revoked_token_ends_its_session(served: Served, opened: Open) -> None:
    made = served.gateway.admin("POST", "/admin-tokens", {"name": "vera", "role": "viewer"})
    page = opened(token=str(made["secret"]))
    page.goto(served.url + "/keys")
    expect(page.get_by_role("link", name="Create a key")).to_have_count(0)
    served.gateway.admin("POST", "/admin-tokens/vera/revoke")
    page.get_by_role("link", name="Teams").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


@pytest.mark.parametrize("origin", ["http://localhost:9/", "http://127.0.0.1:9/"])
def test_other_sites_change_nothing(chromium: Browser, served: Served, opened: Open, origin: str) -> None:
    """From another site the cookie does not come along; from another port of this host it does, and the form is
    refused all the same."""
    page = opened()
    other = page.context.new_page()
    form = (
        f'<form method="post" action="{served.url}/keys"><input name="name" value="stolen">'
        '<input name="form_token" value="guessed"><button>Win</button></form>'
    )
    other.route(origin, lambda route: route.fulfill(body=form, content_type="text/html"))
    other.goto(origin)
    other.get_by_role("button").click()
    title = "Sign in" if "localhost" in origin else "This form is not from here"
    expect(other.get_by_role("heading", level=1)).to_have_text(title)
    names = [key["name"] for key in served.gateway.admin("GET", "/keys")["data"]]  # type: ignore[attr-defined]
    assert "stolen" not in names


def test_limits_are_live(served: Served, opened: Open) -> None:
    """Without a reload; the clock of the page is ours."""
    page = opened()
    page.clock.install()
    page.goto(served.url + "/keys/ann")
    requests = page.locator("#limits tr", has_text="Requests in 60 s").locator("data").first
    before = int(requests.get_attribute("value") or "0")
    assert served.ask(served.ann) == 200
    deadline = time.monotonic() + DEADLINE_S
    while int(requests.get_attribute("value") or "0") == before:
        assert time.monotonic() < deadline
        page.clock.fast_forward(11_000)


def test_it_works_without_scripts(served: Served, opened: Open) -> None:
    page = opened(java_script_enabled=False)
    page.goto(served.url + "/keys/ann")
    expect(page.get_by_role("heading", level=1)).to_have_text("ann")
    page.get_by_role("button", name="Reset limits").click()
    expect(page.get_by_role("status")).to_contain_text("windows are empty")


def test_it_works_by_keyboard(served: Served, opened: Open) -> None:
    """The first stop skips the navigation; every stop shows where one is."""
    page = opened()
    page.goto(served.url + "/keys/ann")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.getElementById('main').contains(document.activeElement)")
    seen: list[str] = []
    for _ in range(40):
        stop = page.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return [e.tagName, e.textContent.trim().slice(0, 20), s.outlineStyle !== 'none'] })()"
        )
        if stop[0] == "BODY":
            break
        assert stop[2], f"{stop} does not show that it has the focus"
        seen.append(stop[1])
        page.keyboard.press("Tab")
    assert {"Edit", "Rotate", "Reset limits", "Revoke"} <= set(seen)


def test_everybody_can_use_it(served: Served, opened: Open) -> None:
    """axe finds nothing on any page, light or dark; on a phone no page is wider than the screen."""
    axe = axe_source()
    page = opened(token=None, viewport=DESKTOP)
    page.goto(served.url + "/login")
    check(page, axe, "/login")
    page = opened(viewport=DESKTOP)
    record = served.gateway.admin("GET", "/logs")["data"][0]  # type: ignore[index]
    charge = served.gateway.admin("GET", "/corrections")["data"][0]["attempt"]  # type: ignore[index]
    found = (f"/logs/{record['request_id']}?at={record['time_us']}", f"/charges/{charge}")
    for path in (*PAGES, *found):
        page.goto(served.url + path)
        check(page, axe, path)


def check(page: Page, axe: str, path: str) -> None:
    """Light by all rules, dark by those of colours, narrow by its width."""
    page.evaluate(axe)
    for scheme, rules in (("light", "{}"), ("dark", "{runOnly: ['color-contrast', 'link-in-text-block']}")):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        problems = page.evaluate(f"axe.run(document, {rules}).then(r => r.violations)")
        told = [(p["id"], p["help"], [node["html"][:200] for node in p["nodes"]][:3]) for p in problems]
        assert told == [], f"{path}, {scheme}"
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], f"{path} is too wide for a phone"
    page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
