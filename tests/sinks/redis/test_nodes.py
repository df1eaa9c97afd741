"""Redis URLs: what they name, and that their passwords are never shown."""

from __future__ import annotations

import pytest

from worker.config.settings import Settings, UsageError
from worker.config.sources import load
from worker.core.errors import Fatal
from worker.sinks.redis.nodes import Node, same_slot


def where(url: str) -> str:
    return Node(Settings(topic="t", redis_url=url), "k").where


def test_a_url_names_a_server_a_cluster_or_sentinels() -> None:
    assert where("redis://user@h:1/2") == "Redis at h:1"
    assert where("rediss://h?ssl_ca_certs=/ca.pem") == "Redis at h:6379"
    assert where("unix:///run/redis.sock?db=1") == "Redis at /run/redis.sock"
    assert where("redis+cluster://user@a:1,b:2") == "Redis Cluster at a:1,b:2"
    assert where("redis+sentinel://user@a,b:2/mymaster/3") == "Redis mymaster of the Sentinels at a,b:2"


@pytest.mark.parametrize("url", ["redis+cluster://a:1/3", "redis+sentinel://a:1", "redis+sentinel://a:1/m/x"])
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(Fatal, match="--redis-url"):
        where(url)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel"])
def test_a_password_in_a_url_is_masked_and_refused_in_an_argument(scheme: str) -> None:
    url = f"{scheme}://user:canary@a:1,b:2/m/0"
    assert "canary" not in str(load({}, {"WORKER_REDIS_URL": url})[0].redacted())
    with pytest.raises(UsageError, match="password in an argument") as refused:
        load({"redis_url": url}, {})
    assert "canary" not in str(refused.value)


def test_the_path_of_a_key_file_is_not_a_secret() -> None:
    url = "rediss://h/0?ssl_keyfile=/client.key&ssl_certfile=/client.pem"
    assert load({"redis_url": url}, {})[0].redacted()["redis_url"] == url
    with pytest.raises(UsageError):
        load({"redis_url": f"{url}&ssl_password=canary"}, {})


def test_a_prefix_keeps_keys_in_one_slot() -> None:
    assert [same_slot(key) for key in ("a{b}c", "plain")] == ["a{b}c", "{plain}"]
