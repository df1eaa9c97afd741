"""Try the function of `--transform` on a sample of the topic's events. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import orjson

from worker.commands.check.finding import Finding, ok, warn
from worker.core.records import Decode, Field

_WHOLE = Field("", (), list)  # the transformed event itself
_STRICT = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def check_transform(decode: Decode, payloads: Sequence[bytes]) -> tuple[list[bytes], list[Finding]]:
    """Return the sample after the function, as JSON, and the findings. Invalid JSON stays as it is.

    Raises Fatal if the function does not return one item for each event.
    """
    decoded = decode(payloads, (_WHOLE,))
    if not payloads:
        return [], []
    failed = Counter(reject.error for reject in decoded.rejects if reject.reason == "transform_failed")
    invalid = [payloads[reject.index] for reject in decoded.rejects if reject.reason != "transform_failed"]
    texts = list(filter(None, map(_to_json, decoded.columns[0])))
    skipped = len(payloads) - decoded.rows - len(decoded.rejects)
    total = f"of the {len(payloads)} sampled events"
    summary = f"{decoded.rows} {total} are stored, {skipped} skipped"
    findings = [ok("transform", summary)] if decoded.rows else [warn("transform", summary, "correct the function")]
    for error, count in failed.most_common():
        findings.append(warn("transform", f"fails for {count} {total}: {error}", "correct the function"))
    if other := decoded.rows - len(texts):
        fix = "return texts, numbers, booleans, lists, dicts and None only, such as isoformat() of a datetime"
        findings.append(warn("transform", f"{other} {total} get values that JSON does not have", fix))
    return [*texts, *invalid], findings


def _to_json(event: object) -> bytes | None:
    """Return the event as JSON; None if it has other values than JSON has."""
    try:
        text = orjson.dumps(event, option=_STRICT)
    except orjson.JSONEncodeError:
        return None
    return text if orjson.loads(text) == event else None
