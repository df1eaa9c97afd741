from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config.settings import Settings, UsageError
from worker.config.sources import load
from worker.config.topic_selection import Selection
from worker.core.topic_list import TopicList

_NAMES = st.text("ab._-1", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))


def select(*topics: str, existing: list[str], **options: str) -> list[str]:
    return Selection(Settings(topic=",".join(topics), **options)).select(existing)  # type: ignore[arg-type]


def test_named_topics_come_first_and_only_if_they_exist() -> None:
    assert select("b", "^a", "c", existing=["a2", "a1", "b", "d"]) == ["b", "a1", "a2"]


def test_an_expression_is_anchored_only_at_the_start() -> None:
    assert select("^ev", existing=["events", "my-events"]) == ["events"]
    assert select("^ev$", existing=["events", "ev"]) == ["ev"]


@pytest.mark.parametrize(
    ("options", "excluded"),
    [
        ({}, "a.dlq"),
        ({}, "__consumer_offsets"),
        ({}, "of-another-worker.dlq"),
        ({"dead_letter_topic": "bad"}, "bad"),
        ({"dead_letter_topic": "bad-{topic}-x"}, "bad-a-x"),
    ],
)
def test_an_expression_matches_neither_dead_letter_topics_nor_internal_topics(
    options: dict[str, str], excluded: str
) -> None:
    assert select("^.*", existing=["a", excluded], **options) == ["a"]


def test_a_dead_letter_topic_may_be_named_but_not_beside_its_own_topic() -> None:
    assert select("a.dlq", existing=["a", "a.dlq"]) == ["a.dlq"]
    with pytest.raises(UsageError, match="endless loop"):
        select("a", "a.dlq", existing=[])


@given(
    topics=st.lists(_NAMES, unique=True), template=st.sampled_from(["{topic}.dlq", "x{topic}", "b", "{topic}-{topic}"])
)
def test_the_worker_never_reads_its_own_dead_letter_topics(topics: list[str], template: str) -> None:
    settings = Settings(topic="^", dead_letter_topic=template)
    read = Selection(settings).select(
        [*topics, *(settings.for_topic(topic).dead_letter_topic_name for topic in topics)]
    )
    assert not {settings.for_topic(topic).dead_letter_topic_name for topic in read} & set(read)


def test_topics_that_would_share_a_table_by_accident_are_detected() -> None:
    selection = Selection(Settings(topic="^", backend="clickhouse", table="t_{topic}"))
    assert selection.find_table_clash(["a-b", "c", "a.b"]) == ("a-b", "a.b", "t_a_b")
    assert selection.find_table_clash(["a-b", "c"]) is None
    assert Selection(Settings(topic="^", backend="clickhouse")).find_table_clash(["a-b", "a.b"]) is None


def test_a_redis_cluster_needs_the_keys_of_several_topics_in_one_slot() -> None:
    url = "redis+cluster://127.0.0.1:7000"
    with pytest.raises(UsageError, match="share a hash tag"):
        Selection(Settings(topic="a,b", redis_url=url))
    Selection(Settings(topic="a", redis_url=url))
    Selection(Settings(topic="a,b", redis_url=url, redis_key="{devices}:{topic}"))
    Selection(Settings(topic="a,b", redis_url=url, redis_key="devices"))
    Selection(Settings(topic="a,b"))


@pytest.mark.parametrize(
    ("text", "topics"),
    [
        ("a", ("a",)),
        ("a, b,a", ("a", "b")),
        ("^a{2,3},b", ("^a{2,3}", "b")),
        ("", ()),
    ],
)
def test_commas_separate_topics_except_inside_a_quantifier(text: str, topics: tuple[str, ...]) -> None:
    settings, _ = load({"topic": text}, {})
    assert settings.topics == topics
    assert settings.one_topic == (topics == ("a",))


@pytest.mark.parametrize("text", ["a b", "^(", "a,."])
def test_an_invalid_topic_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--topic"):
        load({"topic": text}, {})


@given(lists=st.lists(st.lists(_NAMES, unique=True), max_size=5))
def test_the_topic_list_returns_the_last_written_names_and_a_new_version(lists: list[list[str]]) -> None:
    topic_list, versions = TopicList(), [0]
    topic_list.partitions = 7
    for topics in lists:
        topic_list.write(topics)
        version, names = topic_list.read()
        assert names == topics
        versions.append(version)
    assert len(set(versions)) == len(versions)
    assert not any(version % 2 for version in versions)
    assert topic_list.partitions == 7


def test_more_topics_than_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        TopicList().write(["x" * 249] * 5000)
