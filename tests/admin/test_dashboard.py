"""The dashboard over HTTP: who gets in, what a form must carry, what each role sees and may do.

What only a browser can tell (layout, keyboard, accessibility, the policy in force) is in tests/test_dashboard.py.
"""

import csv
import io
import re
import time

import pytest

from tests.admin.browser import Browser
from tests.admin.conftest import DIGEST_KEY, TOKEN, Control, now_us
from tests.admin.test_budgets import given
from tests.admin.test_logs import ship
from tests.logs.conftest import make_pipeline, make_record
from tollkeeper.admin.dashboard.sessions import SESSION_S, Sessions
from tollkeeper.domain.accounts import NewKey
from tollkeeper.domain.operators import NewAdminToken, Role
from tollkeeper.governance.logins import TRIES
from tollkeeper.storage.database import Database

OPEN = {"/login", "/logout", "/static/{name}"}
PAGES = (
    *("", "/keys", "/keys/k", "/keys/new", "/keys/k/edit", "/teams", "/teams/new", "/organisations", "/usage"),
    *("/logs", "/delivery", "/delivery/proof", "/charges", "/audit", "/nothing", "/keys/none", "/session"),
    *("/alerts", "/tokens", "/tokens/new", "/tokens/none"),
)
INLINE = re.compile(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:|https?://", re.IGNORECASE)


async def token_of(control: Control, role: Role, *owns: str) -> tuple[str, str]:
    """Id and secret of a new token."""
    tokens = control.database.admin_tokens(DIGEST_KEY, now_us)
    made, secret = await tokens.create(NewAdminToken(f"{role}-token", role, owns))
    return made.id, secret


async def test_signing_in_and_out(control: Control) -> None:
    """Without a session every page leads to the form and back to where one wanted to go."""
    browser = Browser(control)
    sent_away = await browser.get("/dashboard/keys?name=a%20b")
    assert (sent_away.status, sent_away.headers["location"]) == (
        303,
        "/dashboard/login?next=/dashboard/keys%3Fname%3Da%2520b",
    )
    await browser.get(sent_away.headers["location"])
    signed_in = await browser.post("/dashboard/login", {"token": TOKEN}, next=browser.hidden("next"))
    assert (signed_in.status, signed_in.headers["location"]) == (303, "/dashboard/keys?name=a%20b")
    cookie = signed_in.headers["set-cookie"]
    assert "; HttpOnly; SameSite=Strict" in cookie and "Secure" not in cookie
    assert f"Max-Age={SESSION_S}" in cookie and TOKEN not in cookie
    assert (await browser.get("/dashboard")).status == 200
    assert (await browser.post("/dashboard/logout", {}, form_token="x" * 64)).status == 403
    await browser.get("/dashboard")
    assert (await browser.post("/dashboard/logout", {})).headers["location"] == "/dashboard/login"
    assert (await browser.get("/dashboard")).status == 303


async def test_behind_https_the_cookie_stays_there(control: Control) -> None:
    signed_in = await Browser(control, extra={"x-forwarded-proto": "https"}).sign_in()
    assert signed_in.headers["set-cookie"].endswith("; Secure")


@pytest.mark.parametrize("elsewhere", ["//evil.test", "https://evil.test/dashboard", "/dashboardx", "/admin/v1/keys"])
async def test_signing_in_leads_nowhere_else(control: Control, elsewhere: str) -> None:
    browser = Browser(control)
    await browser.get("/dashboard/login")
    assert (await browser.post("/dashboard/login", {"token": TOKEN}, next=elsewhere)).headers["location"] == (
        "/dashboard"
    )


async def test_a_wrong_token_is_refused_and_guessing_is_slowed_down(control: Control) -> None:
    """By the same counters as the API's, so that neither is a way around the other."""
    browser = Browser(control)
    for _ in range(TRIES):
        refused = await browser.sign_in("tka_wrong")
        assert refused.status == 401 and "set-cookie" not in refused.headers
    limited = await browser.sign_in("tka_wrong")
    assert limited.status == 429 and int(limited.headers["retry-after"]) > 0
    assert (await control("GET", "/admin/v1/me", token="tka_other")).status == 429
    assert (await Browser(control, "192.0.2.99").sign_in()).status == 303


async def test_a_session_ends_with_its_token(control: Control) -> None:
    """Revoked or rotated: at the next request, and the cookie is taken back."""
    tokens = control.database.admin_tokens(DIGEST_KEY, now_us)
    token_id, secret = await token_of(control, Role.VIEWER)
    browser = Browser(control)
    await browser.sign_in(secret)
    assert (await browser.get("/dashboard/keys")).status == 200
    _, second = await tokens.rotate(token_id)
    ended = await browser.get("/dashboard/keys")
    assert ended.status == 303 and "Max-Age=0" in ended.headers["set-cookie"]
    await browser.sign_in(second)
    assert (await browser.get("/dashboard/keys")).status == 200
    await tokens.revoke(token_id)
    assert (await browser.get("/dashboard/keys")).status == 303


async def test_signing_out_ends_copies_of_the_cookie_too(control: Control) -> None:
    """On another gateway as on this one; another session of the same token goes on."""
    browser, thief, beside = Browser(control), Browser(control), Browser(control)
    await browser.sign_in()
    await beside.sign_in()
    copied = thief.cookies = dict(browser.cookies)
    assert (await thief.get("/dashboard/keys")).status == 200
    here, control.application = control.application, control.make(control.database)
    assert (await thief.get("/dashboard/keys")).status == 200
    await browser.get("/dashboard/keys")
    await browser.post("/dashboard/logout", {})
    for gateway in (control.application, here):
        control.application, thief.cookies = gateway, dict(copied)
        ended = await thief.get("/dashboard/keys")
        assert ended.status == 303 and "Max-Age=0" in ended.headers["set-cookie"]
        assert (await beside.get("/dashboard/keys")).status == 200


async def test_signing_out_everywhere(control: Control) -> None:
    """Ends all sessions of this token, on every gateway, and of no other; new ones may begin."""
    _, secret = await token_of(control, Role.OWNER, "key_mine")
    first, second, other = Browser(control), Browser(control), Browser(control)
    for browser, token in ((first, secret), (second, secret), (other, TOKEN)):
        await browser.sign_in(token)
    for again in range(2):
        await first.get("/dashboard/session")
        control.application = control.make(control.database)
        assert (await first.post("/dashboard/session/end-all", {})).headers["location"] == "/dashboard/login"
        for browser in (first, second):
            assert (await browser.get("/dashboard/keys")).status == 303, again
            assert (await browser.sign_in(secret)).status == 303
            assert (await browser.get("/dashboard/keys")).status == 200
        assert (await other.get("/dashboard/keys")).status == 200
    events = (await control("GET", "/admin/v1/audit?action=sessions.end_all")).json["data"]
    assert [(event["actor_name"], event["source"]) for event in events] == [("owner-token", "dashboard")] * 2


async def test_rotating_a_token_ends_its_sessions_though_the_old_secret_works_for_a_while(control: Control) -> None:
    token_id, secret = await token_of(control, Role.VIEWER)
    browser = Browser(control)
    await browser.sign_in(secret)
    await control.database.admin_tokens(DIGEST_KEY, now_us).rotate(token_id, overlap_s=3600)
    assert (await browser.get("/dashboard/keys")).status == 303
    assert (await control("GET", "/admin/v1/me", token=secret)).status == 200


def test_a_session_has_an_end_and_one_master() -> None:
    now = [1_795_000_000_000_000]
    sessions = Sessions("master", lambda: now[0])
    begun = sessions.begin("tka_x", 3)
    cookie = sessions.cookie(begun)
    now[0] += SESSION_S * 1_000_000 - 1
    assert sessions.read(cookie) == begun and begun.token == "tka_x"
    assert Sessions("another", lambda: now[0]).read(cookie) is None
    for broken in ("", "x", "é", cookie[:-4], cookie[:-4] + "AAAA", cookie * 40):
        assert sessions.read(broken) is None
    now[0] += 1
    assert sessions.read(cookie) is None


async def test_forms_of_other_sites_and_sessions_do_nothing(control: Control) -> None:
    """Neither signing in nor a change is taken without the token that only our page could carry."""
    browser, other = Browser(control), Browser(control)
    await browser.get("/dashboard/login")
    assert (await browser.post("/dashboard/login", {"token": TOKEN}, form_token="")).status == 403
    await browser.sign_in()
    await other.sign_in()
    await other.get("/dashboard/keys/new")
    for form_token in ("", "x" * 64, other.hidden("form_token")):
        refused = await browser.post("/dashboard/keys", {"name": "stolen"}, form_token=form_token)
        assert refused.status == 403 and "Nothing was done" in refused.body.decode()
    assert (await control("GET", "/admin/v1/keys")).json["data"] == []


async def test_a_key_is_made_once_and_its_secret_shown_once(control: Control) -> None:
    browser = Browser(control)
    await browser.sign_in()
    await browser.get("/dashboard/keys/new")
    fields = {"name": "Ann's <b>key</b>", "budgets_month": "12.50", "rpm": "60", "models": "gpt-4o*\nclaude-*"}
    hidden = {name: browser.hidden(name) for name in ("form_token", "once")}
    made = await browser.post("/dashboard/keys", fields, **hidden)
    secret = browser.page.partition('readonly value="')[2].partition('"')[0]
    assert made.status == 200 and secret.startswith("tk_") and made.headers["cache-control"] == "no-store"
    assert "<b>key</b>" not in browser.page
    again = await browser.post("/dashboard/keys", fields, **hidden)
    assert again.status == 409 and secret not in browser.page
    (key,) = (await control("GET", "/admin/v1/keys")).json["data"]
    assert (key["name"], key["hint"]) == ("Ann's <b>key</b>", secret[-4:])
    assert key["limits"]["budgets"] == {"month": "12.50"} and key["limits"]["models"] == ["gpt-4o*", "claude-*"]
    deadline = time.monotonic() + 60
    while "$12.50" not in (await browser.get(f"/dashboard/keys/{key['id']}")).body.decode():
        assert time.monotonic() < deadline
    assert secret not in browser.page
    (event,) = (await control("GET", "/admin/v1/audit?action=key.create")).json["data"]
    assert (event["source"], event["actor_id"]) == ("dashboard", "bootstrap")


async def test_a_form_with_a_mistake_comes_back_as_it_was_and_may_be_mended(control: Control) -> None:
    browser = Browser(control)
    await browser.sign_in()
    await browser.get("/dashboard/keys/new")
    once = browser.hidden("once")
    refused = await browser.post("/dashboard/keys", {"name": "ann", "budgets_month": "ten"}, once=once)
    assert refused.status == 400 and 'value="ten"' in browser.page and "limits.budgets.month" in browser.page
    assert (await browser.post("/dashboard/keys", {"name": "ann", "budgets_month": "10"}, once=once)).status == 200


async def test_an_edit_changes_what_was_edited(control: Control) -> None:
    """What somebody else changed meanwhile stays."""
    created = (await control("POST", "/admin/v1/keys", {"name": "a", "limits": {"rpm": 1, "tpm": 1}})).json
    browser = Browser(control)
    await browser.sign_in()
    await browser.get(f"/dashboard/keys/{created['id']}/edit")
    await control("PATCH", f"/admin/v1/keys/{created['id']}", {"limits": {"tpm": 5, "budgets": {"day": "1.00"}}})
    fields = {"name": "b", "was_name": "a", "rpm": "7", "was_rpm": "1", "tpm": "1", "was_tpm": "1"}
    saved = await browser.post(f"/dashboard/keys/{created['id']}", fields)
    assert saved.status == 303
    key = (await control("GET", f"/admin/v1/keys/{created['id']}")).json
    assert (key["name"], key["limits"]["rpm"], key["limits"]["tpm"]) == ("b", 7, 5)
    assert key["limits"]["budgets"] == {"day": "1.00"}
    fields = {"name": "b", "was_name": "b", "rpm": "", "was_rpm": "7"}
    await browser.get(f"/dashboard/keys/{created['id']}/edit")
    await browser.post(f"/dashboard/keys/{created['id']}", fields)
    assert (await control("GET", f"/admin/v1/keys/{created['id']}")).json["limits"]["rpm"] is None


async def test_rotating_and_revoking(control: Control) -> None:
    created = (await control("POST", "/admin/v1/keys", {"name": "a"})).json
    path = f"/dashboard/keys/{created['id']}"
    browser = Browser(control)
    await browser.sign_in()
    await browser.get(path)
    rotated = await browser.post(f"{path}/rotate", {"overlap_s": "3600"}, once=browser.hidden("once"))
    secret = browser.page.partition('readonly value="')[2].partition('"')[0]
    assert rotated.status == 200 and secret != created["secret"]
    await browser.get(path)
    assert "Old secret works until" in browser.page and secret[-4:] in browser.page
    unsure = await browser.post(f"{path}/revoke", {"confirm": "b"})
    assert unsure.status == 400
    await browser.get(path)
    assert (await browser.post(f"{path}/revoke", {"confirm": "a"})).status == 303
    assert (await control("GET", f"/admin/v1/keys/{created['id']}")).json["state"] == "revoked"


async def test_an_admin_token_from_its_form_to_its_end(control: Control) -> None:
    """Its secret is shown once and signs in; another one ends its sessions; revoked, it is refused."""
    key = (await control("POST", "/admin/v1/keys", {"name": "k"})).json
    browser, other = Browser(control), Browser(control)
    await browser.sign_in()
    await browser.get("/dashboard/tokens/new")
    once = browser.hidden("once")
    refused = await browser.post("/dashboard/tokens", {"name": "ann", "role": "owner"}, once=once)
    assert refused.status == 400 and "owns: give 1 to" in browser.page and 'value="ann"' in browser.page
    fields = {"name": "ann", "role": "owner", "owns": f"{key['id']}\n", "expires_at": "2099-12-31"}
    made = await browser.post("/dashboard/tokens", fields, once=once)
    secret = browser.page.partition('readonly value="')[2].partition('"')[0]
    assert made.status == 200 and secret.startswith("tka_")
    (token,) = (await control("GET", "/admin/v1/admin-tokens")).json["data"]
    assert (token["role"], token["owns"], token["expires_at"]) == ("owner", [key["id"]], "2099-12-31T00:00:00Z")
    path = f"/dashboard/tokens/{token['id']}"
    assert (await other.sign_in(secret)).status == 303
    assert (await other.get(path)).status == 403
    await browser.get(path)
    assert secret not in browser.page and secret[-4:] in browser.page
    await browser.post(f"{path}/rotate", {"overlap_s": "3600"}, once=browser.hidden("once"))
    second = browser.page.partition('readonly value="')[2].partition('"')[0]
    assert second not in ("", secret) and (await other.get("/dashboard")).status == 303
    await browser.get(path)
    assert (await browser.post(f"{path}/revoke", {"confirm": "bob"})).status == 400
    await browser.get(path)
    assert (await browser.post(f"{path}/revoke", {"confirm": "ann"})).status == 303
    assert (await other.sign_in(second)).status == 401
    await browser.get("/dashboard/tokens")
    assert "ann" not in browser.page
    await browser.get("/dashboard/tokens?revoked=1")
    assert "ann" in browser.page
    actions = [event["action"] for event in (await control("GET", "/admin/v1/audit")).json["data"]]
    assert actions[:3] == ["admin_token.revoke", "admin_token.rotate", "admin_token.create"]


async def test_alerts_tell_what_was_reached_and_what_the_webhook_knows(control: Control) -> None:
    """To owners only what is theirs."""
    await given(control)
    browser = Browser(control)
    await browser.sign_in()
    await browser.get("/dashboard/alerts")
    for shown in (">delivered<", ">retrying<", ">no webhook<", ">given up<", "key_c", "key_b", "it answered 500"):
        assert shown in browser.page, shown
    await browser.get("/dashboard/alerts?delivery=delivered")
    assert "key_c" in browser.page and "key_b" not in browser.page
    assert (await browser.get("/dashboard/alerts?delivery=lost")).status == 400
    owner = Browser(control)
    await owner.sign_in((await token_of(control, Role.OWNER, "key_b"))[1])
    await owner.get("/dashboard/alerts")
    assert "key_b" in owner.page and "key_c" not in owner.page


async def test_files_hold_what_the_pages_show(control: Control) -> None:
    """As CSV, harmless in a spreadsheet; an owner gets its own alone."""
    await ship(control)
    control.pipeline = make_pipeline(control.logs, "gw2")
    control.pipeline.put(make_record(11, time_us=now_us(), model="m"))
    await control.pipeline.start()
    await control.pipeline.stop()
    await control("POST", "/admin/v1/keys", {"name": "=1+1"})
    body = {"scope": "key", "name": "=1+1", "amount_usd": "2.50", "note": "n"}
    await control("POST", "/admin/v1/corrections", body)
    browser, owner = Browser(control), Browser(control)
    await browser.sign_in()
    await owner.sign_in((await token_of(control, Role.OWNER, "key_none"))[1])
    months = await browser.get("/dashboard/usage/months.csv")
    assert months.headers["content-disposition"].startswith("attachment;")
    (row,) = csv.DictReader(io.StringIO(months.body.decode()))
    assert (row["key_name"], row["cost_usd"]) == ("'=1+1", "2.50")
    logs = list(csv.DictReader(io.StringIO((await browser.get("/dashboard/logs.csv?key=demo")).body.decode())))
    assert len(logs) == 11 and {line["key_name"] for line in logs} == {"demo"}
    assert not {"request_body", "response_body"} & set(logs[0])
    assert len((await browser.get("/dashboard/logs.csv?request_id=req_3")).body.splitlines()) == 2
    sums = await browser.get("/dashboard/usage/report.csv?by=model&range=24h")
    (line,) = csv.DictReader(io.StringIO(sums.body.decode()))
    assert (line["model"], line["requests"]) == ("m", "1")
    for path in ("/usage/months.csv", "/logs.csv", "/usage/report.csv"):
        assert (await owner.get(f"/dashboard{path}")).body.strip() == b"", path


async def test_teams_and_organisations(control: Control) -> None:
    browser = Browser(control)
    await browser.sign_in()
    await browser.get("/dashboard/organisations/new")
    fields = {"name": "Acme", "budgets_month": "100"}
    made = await browser.post("/dashboard/organisations", fields, once=browser.hidden("once"))
    assert made.status == 303 and "Acme" in (await browser.get(made.headers["location"])).body.decode()
    await browser.get("/dashboard/teams/new")
    made = await browser.post(
        "/dashboard/teams", {"name": "research", "organisation": "Acme", "tpm": "9"}, once=browser.hidden("once")
    )
    team = made.headers["location"].partition("?")[0]
    await control("POST", "/admin/v1/keys", {"name": "k", "organisation": "Acme", "team": "research"})
    deadline = time.monotonic() + 60
    while "Tokens in 60 s" not in (await browser.get(team)).body.decode():
        assert time.monotonic() < deadline, "on a busy machine the store may answer late, and the page says so"
    assert ">k</a>" in browser.page
    await browser.get(f"{team}/edit")
    assert (await browser.post(team, {"tpm": "11", "was_tpm": "9"})).status == 303
    shown = (await control("GET", "/admin/v1/teams/research")).json
    assert shown["limits"]["tpm"] == 11


async def test_every_page_asks_who_it_is_and_for_which_role(control: Control) -> None:
    """The matrix over all routes: nothing without a session; what needs an admin is refused to others."""
    site = control.application.load().dashboard
    routes = [(route.path, method) for route in site._routes for method in (route.methods or set()) - {"HEAD"}]
    assert len(routes) > 15
    key = (await control("POST", "/admin/v1/keys", {"name": "mine"})).json
    browsers = {role: Browser(control) for role in Role}
    for role in Role:
        _, secret = await token_of(control, role, *([key["id"]] if role is Role.OWNER else []))
        await browsers[role].sign_in(secret)
        await browsers[role].get("/dashboard")
    for path, method in sorted(routes, key=lambda each: each[0] == "/session/end-all"):
        if path in OPEN:
            continue
        wanted = "/dashboard" + re.sub(r"\{\w+\}", key["id"], path)
        stranger = Browser(control)
        answer = await (stranger.get(wanted) if method == "GET" else stranger.post(wanted, {}))
        assert answer.status == 303 and "/dashboard/login" in answer.headers["location"], path
        roles = site.roles[method, path]
        for role in Role:
            await browsers[role].get("/dashboard")
            answer = await (browsers[role].get(wanted) if method == "GET" else browsers[role].post(wanted, {"x": ""}))
            assert (answer.status == 403) == (role not in roles), (path, method, role, answer.status)
            assert answer.status != 500
            if method == "POST":
                assert roles == ((Role.ADMIN,) if path != "/session/end-all" else tuple(Role)), path


async def test_an_owner_sees_its_own_alone(control: Control) -> None:
    accounts = control.database.accounts(DIGEST_KEY, now_us)
    mine, _ = await accounts.create_key(NewKey("mine"))
    other, _ = await accounts.create_key(NewKey("foreign"))
    _, secret = await token_of(control, Role.OWNER, mine.id)
    browser = Browser(control)
    await browser.sign_in(secret)
    for path in ("/dashboard", "/dashboard/keys", "/dashboard/teams"):
        assert "foreign" not in (await browser.get(path)).body.decode()
    assert (await browser.get(f"/dashboard/keys/{mine.id}")).status == 200
    assert (await browser.get(f"/dashboard/keys/{other.id}")).status == 404


async def test_pages_load_nothing_from_elsewhere(control: Control) -> None:
    """The policy forbids it, and no page has anything that the policy would stop."""
    await control("POST", "/admin/v1/keys", {"name": "k", "limits": {"budgets": {"month": "1.00"}}})
    browser = Browser(control)
    await browser.get("/dashboard/login")
    pages = [browser.page]
    await browser.sign_in()
    for path in PAGES:
        answer = await browser.get(f"/dashboard{path}")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        pages.append(browser.page)
    for page in pages:
        assert not INLINE.search(page), INLINE.search(page)
    asset = re.search(r'href="(/dashboard/static/dashboard.css\?v=\w+)"', browser.page)
    assert asset is not None
    css = await browser.get(asset[1])
    assert css.headers["content-type"].startswith("text/css") and "immutable" in css.headers["cache-control"]
    assert b"url(" not in css.body and b"@import" not in css.body


async def test_a_charge_is_corrected_and_spend_adjusted(control: Control) -> None:
    """By the same service as the API's; the audit log tells of it as of any change."""
    await control("POST", "/admin/v1/keys", {"name": "k"})
    browser = Browser(control)
    await browser.sign_in()
    await browser.get("/dashboard/charges")
    fields = {"scope": "key", "name": "k", "amount_usd": "2.50", "note": "a <gift>"}
    done = await browser.post("/dashboard/charges", fields, once=browser.hidden("once"))
    assert done.status == 303
    await browser.get("/dashboard/charges")
    assert "$2.50" in browser.page and "a &lt;gift&gt;" in browser.page
    link = re.search(r'href="(/dashboard/charges/adj_\w+)"', browser.page)
    assert link is not None
    await browser.get(link[1])
    assert (await browser.post(link[1], {"cost_usd": "-1.25", "note": "less"})).status == 303
    (row,) = (await control("GET", "/admin/v1/usage?key=k")).json["data"]
    assert row["cost_usd"] == "-1.25"
    await browser.get("/dashboard/keys/k")
    assert '<data class="money" value="-1.25">-$1.25</data>' in browser.page
    await browser.get("/dashboard/audit?action=correction.issue")
    assert browser.page.count("a &lt;gift&gt;") == 1 and "less" in browser.page


async def test_logs_are_searched_and_bodies_shown_to_whom_the_api_shows_them(control: Control) -> None:
    await ship(control)
    for role, sees in ((Role.ADMIN, True), (Role.VIEWER, False)):
        browser = Browser(control)
        await browser.sign_in((await token_of(control, role))[1])
        await browser.get("/dashboard/logs?key=demo")
        link = re.search(r'href="(/dashboard/logs/req_3\?at=\d+)"', browser.page)
        assert link is not None and browser.page.count('<th scope="row">') == 10
        assert (await browser.get(link[1])).status == 200
        assert ('<pre tabindex="0">{}</pre>' in browser.page) == sees
        assert "No record is like that" in (await browser.get("/dashboard/logs?key=bob")).body.decode()
        assert (await browser.get("/dashboard/logs?status=abc")).status == 400
        assert (await browser.get("/dashboard/logs/req_3?at=1")).status == 404


async def test_the_database_is_away(control: Control) -> None:
    """Signing in says so; the environment's token needs no database for that."""
    away = await Database.open("postgresql://user:verysecret@127.0.0.1:9/db", pool_size=1, timeout_s=1.0)
    control.application = control.make(away)
    browser = Browser(control)
    await browser.get("/dashboard/login")
    assert (await browser.post("/dashboard/login", {"token": "tka_" + "x" * 43})).status == 503
    assert (await browser.post("/dashboard/login", {"token": TOKEN})).status == 303
    answer = await browser.get("/dashboard/keys")
    assert answer.status == 503 and "verysecret" not in browser.page
    assert (await browser.get("/dashboard/session")).status == 200
    copy = dict(browser.cookies)
    half_out = await browser.post("/dashboard/logout", {})
    assert half_out.status == 503 and "Sign out everywhere" in browser.page and "Max-Age=0" in str(half_out.headers)
    browser.cookies = copy
    assert (await browser.get("/dashboard/session")).status == 503, "this gateway knows, though it could not tell"
    await away.close()


@pytest.mark.parametrize("body", [b"a" * 200_000, b"\xff", b"&".join([b"a=1"] * 300)])
async def test_absurd_forms_are_refused(control: Control, body: bytes) -> None:
    browser = Browser(control)
    await browser.sign_in()
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    answer = await control("POST", "/dashboard/keys", body=body, token=None, extra={"cookie": cookies})
    assert answer.status in (400, 403)
