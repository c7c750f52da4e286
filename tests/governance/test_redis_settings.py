"""Where Redis is, by argument, environment and URL; what cannot work is refused with the setting's name."""

from pathlib import Path
from typing import Any

import pytest

from tests.servers.redis import Certificates
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.governance.redis_settings import ENVIRONMENT, SCHEMES, Topology, from_environment, of_store, read
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.settings import REDIS_SCHEMES, load, shown


def test_defaults() -> None:
    settings = read()
    assert settings.addresses == (("localhost", 6379),) and settings.db == 0 and settings.password is None
    assert (settings.pool_size, settings.min_idle_conns) == (10, 2)
    assert (settings.dial_timeout_s, settings.read_timeout_s, settings.write_timeout_s) == (5, 3, 3)
    assert (settings.max_conn_age_s, settings.idle_timeout_s) == (1800, 300)
    assert settings.busy_poll_us == 0


def test_every_variable_of_the_environment_counts(certificates: Certificates) -> None:
    environ = {
        "REDIS_ADDRESS": "[::1]:7000",
        "REDIS_PASSWORD": "hush",
        "REDIS_DB": "3",
        "REDIS_USERNAME": "anna",
        "REDIS_TLS": "true",
        "REDIS_TLS_CA_FILE": str(certificates.ca),
        "REDIS_TLS_CERT_FILE": str(certificates.folder / "client.pem"),
        "REDIS_TLS_KEY_FILE": str(certificates.folder / "client.key"),
        "REDIS_POOL_SIZE": "4",
        "REDIS_MIN_IDLE_CONNS": "1",
        "REDIS_DIAL_TIMEOUT": "300ms",
        "REDIS_READ_TIMEOUT": "2m",
        "REDIS_WRITE_TIMEOUT": "1.5",
        "REDIS_MAX_CONN_AGE": "1h",
        "REDIS_IDLE_TIMEOUT": "10s",
        "REDIS_BUSY_POLL_US": "50",
        "REDIS_URL": " ",
    }
    assert set(environ) == set(ENVIRONMENT)
    settings = read(**from_environment(environ, pool_size=5))
    assert settings.addresses == (("::1", 7000),) and settings.password == "hush" and settings.db == 3
    assert (settings.username, settings.tls) == ("anna", True) and settings.url == "rediss://[::1]:7000/3"
    assert settings.options == {
        "ssl_ca_certs": str(certificates.ca),
        "ssl_certfile": str(certificates.folder / "client.pem"),
        "ssl_keyfile": str(certificates.folder / "client.key"),
    }
    assert (settings.pool_size, settings.min_idle_conns) == (5, 1)
    assert (settings.dial_timeout_s, settings.read_timeout_s, settings.write_timeout_s) == (0.3, 120, 1.5)
    assert (settings.max_conn_age_s, settings.idle_timeout_s) == (3600, 10)
    assert settings.busy_poll_us == 50


def test_the_gateways_settings_are_read_alike(certificates: Certificates) -> None:
    """Every variable that the library reads reaches the gateway's client too, through the same checks; but ages of
    connections, which it does not set."""
    environ = {
        "REDIS_ADDRESS": "redis.internal:7000",
        "REDIS_USERNAME": "anna",
        "REDIS_PASSWORD": "hush",
        "REDIS_DB": "0",
        "REDIS_TLS": "true",
        "REDIS_TLS_CA_FILE": str(certificates.ca),
        "REDIS_TLS_CERT_FILE": str(certificates.folder / "client.pem"),
        "REDIS_TLS_KEY_FILE": str(certificates.folder / "client.key"),
        "REDIS_POOL_SIZE": "4",
        "REDIS_MIN_IDLE_CONNS": "0",
        "REDIS_DIAL_TIMEOUT": "300ms",
        "REDIS_READ_TIMEOUT": "700ms",
        "REDIS_WRITE_TIMEOUT": "600ms",
        "REDIS_BUSY_POLL_US": "0",
    }
    assert set(environ) == set(ENVIRONMENT) - {"REDIS_URL", "REDIS_MAX_CONN_AGE", "REDIS_IDLE_TIMEOUT"}
    loaded = load(None, environ)
    assert not loaded.embedded and "hush" not in str(shown(loaded))
    assert read(**of_store(loaded.store)) == read(**from_environment(environ))
    with pytest.raises(ConfigurationError, match=r"db \(REDIS_DB\): REDIS_URL is given too"):
        RedisStore(load(None, {"REDIS_URL": "redis://h", "REDIS_DB": "1"}).store)
    with pytest.raises(ConfigurationError, match=r"min_idle_conns .*must be at most the pool's size, 1"):
        RedisStore(load(None, {"REDIS_URL": "redis://h", "REDIS_POOL_SIZE": "1"}).store)
    with pytest.raises(ConfigurationError, match=r"store.redis_password \(REDIS_PASSWORD\): there is no Redis yet"):
        load(None, {"REDIS_PASSWORD": "hush"})


def test_an_address_given_by_hand_hides_the_environments() -> None:
    environ = {"REDIS_URL": "redis://:secret@prod/0", "REDIS_POOL_SIZE": "3"}
    settings = read(**from_environment(environ, address="other:1"))
    assert settings.addresses == (("other", 1),) and settings.password is None and settings.pool_size == 3


@pytest.mark.parametrize(
    ("url", "topology", "addresses", "more"),
    [
        ("redis://", Topology.STANDALONE, (("localhost", 6379),), {}),
        (
            "redis://u:p%40s@h:1/2",
            Topology.STANDALONE,
            (("h", 1),),
            {"username": "u", "password": "p@s", "db": 2},
        ),
        ("redis://:p@[::1]/", Topology.STANDALONE, (("::1", 6379),), {"username": None, "password": "p"}),
        ("rediss://h?db=4", Topology.STANDALONE, (("h", 6379),), {"tls": True, "db": 4}),
        ("unix:///run/r.sock?db=1&password=x", Topology.STANDALONE, (), {"path": "/run/r.sock", "db": 1}),
        (
            "redis+sentinel://:p@a:1,b/main/2?sentinel_password=s",
            Topology.SENTINEL,
            (("a", 1), ("b", 26379)),
            {"service": "main", "db": 2, "password": "p", "sentinel_password": "s"},
        ),
        ("rediss+sentinel://a/main", Topology.SENTINEL, (("a", 26379),), {"tls": True}),
        ("redis+cluster://a:1,b:2", Topology.CLUSTER, (("a", 1), ("b", 2)), {"tls": False}),
        ("rediss+cluster://:p@a", Topology.CLUSTER, (("a", 6379),), {"tls": True, "password": "p"}),
    ],
)
def test_forms_of_the_url(
    url: str, topology: Topology, addresses: tuple[tuple[str, int], ...], more: dict[str, Any]
) -> None:
    settings = read(url=url)
    assert settings.topology is topology and settings.addresses == addresses
    assert {name: getattr(settings, name) for name in more} == more


def test_tls_files_are_handed_on(certificates: Certificates) -> None:
    options = read(url=f"rediss://h?{certificates.query}&ssl_check_hostname=false").options
    assert options["ssl_ca_certs"] == str(certificates.ca) and options["ssl_check_hostname"] is False
    assert options["ssl_keyfile"].endswith("client.key")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"address": "h:port"},
            r"address \(REDIS_ADDRESS\): 'h:port' is not an address; write it like localhost:6379",
        ),
        ({"address": "redis://h:1"}, r"address \(REDIS_ADDRESS\)"),
        ({"db": "-1"}, r"db \(REDIS_DB\): '-1' must be a whole number from 0"),
        ({"pool_size": "ten"}, r"pool_size \(REDIS_POOL_SIZE\): 'ten' is not a whole number"),
        ({"pool_size": 0}, r"pool_size \(REDIS_POOL_SIZE\): 0 must be a whole number from 1 to 1000"),
        ({"pool_size": 1.5}, r"pool_size \(REDIS_POOL_SIZE\)"),
        ({"pool_size": 2, "min_idle_conns": 3}, r"min_idle_conns \(REDIS_MIN_IDLE_CONNS\): must be at most .* 2"),
        ({"dial_timeout_s": "soon"}, r"dial_timeout_s \(REDIS_DIAL_TIMEOUT\): 'soon' is not a duration; write .*5s"),
        ({"read_timeout_s": 0}, r"read_timeout_s \(REDIS_READ_TIMEOUT\): 0 must be above zero; write"),
        ({"pool_sise": 3}, r"pool_sise: there is no such setting of Redis; did you mean pool_size\?"),
        (
            {"url": "http://h"},
            r"url \(REDIS_URL\): unknown scheme in 'http://h'; known are redis://, rediss://, unix",
        ),
        ({"url": "redis+foo://h"}, r"unknown scheme"),
        ({"url": "redis://[::1"}, r"is not a URL"),
        ({"url": "redis://h/name"}, r"'name' is not a whole number"),
        ({"url": "redis://h/1/2"}, r"is no database number; write it like /0"),
        ({"url": "redis://a,b"}, r"several hosts: write redis\+cluster:// or redis\+sentinel://"),
        ({"url": "unix://run/redis.sock"}, r"three slashes, like unix:///run/redis.sock"),
        ({"url": "redis+sentinel://a:1"}, r"name the service .* redis\+sentinel://host:port/service"),
        ({"url": "redis+cluster://a/1"}, r"a cluster has database 0 only"),
        ({"url": "redis://h?ssl_ca_cert=x"}, r"unknown parameter 'ssl_ca_cert'; did you mean ssl_ca_certs\?"),
        ({"url": "redis://h?ssl_ca_certs=x"}, r"ssl_ca_certs is for TLS; write rediss://"),
        ({"address": "h", "ssl_ca_certs": "/x"}, r"ssl_ca_certs \(REDIS_TLS_CA_FILE\): it is for TLS; set REDIS_TLS"),
        ({"address": "h", "tls": True, "ssl_certfile": "/nowhere"}, r"REDIS_TLS_CERT_FILE\): cannot read /nowhere"),
        ({"address": "h", "tls": "maybe"}, r"tls \(REDIS_TLS\): 'maybe' is neither true nor false"),
        ({"url": "redis://h", "tls": True}, r"tls \(REDIS_TLS\): REDIS_URL says otherwise; write rediss://"),
        ({"url": "redis://h", "ssl_keyfile": "/x"}, r"ssl_keyfile .*it is for TLS; write rediss://"),
        ({"url": "rediss://h?ssl_ca_certs=/nowhere/ca.pem"}, r"ssl_ca_certs: cannot read /nowhere/ca.pem"),
        ({"url": "rediss://h?ssl_check_hostname=maybe"}, r"ssl_check_hostname: 'maybe' cannot be read"),
        ({"url": "redis://h", "address": "h"}, r"address \(REDIS_ADDRESS\): REDIS_URL is given too"),
        ({"url": "redis://:p@h", "password": "q"}, r"password \(REDIS_PASSWORD\): REDIS_URL has one too"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(**arguments)


def test_a_key_without_its_certificate_is_refused(certificates: Certificates) -> None:
    with pytest.raises(
        ConfigurationError, match=r"ssl_keyfile \(REDIS_TLS_KEY_FILE\): it needs the client's certificate"
    ):
        read(url=f"rediss://h?ssl_keyfile={certificates.folder / 'client.key'}")


def test_passwords_are_never_shown(tmp_path: Path) -> None:
    for url in ("redis://u:hush@h/0", "redis+sentinel://:hush@h/m?sentinel_password=hush", "unix:///s?password=hush"):
        assert "hush" not in read(url=url).url and "hush" not in repr(read(url=url))
    with pytest.raises(ConfigurationError) as caught:
        read(url="redis://:hush@h:port")
    assert "hush" not in str(caught.value)


def test_the_gateways_settings_know_the_same_forms() -> None:
    assert set(REDIS_SCHEMES) == set(SCHEMES)
