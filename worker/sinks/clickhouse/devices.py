"""The number of distinct devices: the function that counts them, and the projection with which a count reads no rows.

A projection is part of a part: a block that the server drops as a duplicate has none, so nothing is counted twice. It
holds one state per part and topic. The server uses it for any query that it can answer, whatever made the projection.
"""

from __future__ import annotations

import re

FUNCTIONS = {"exact": "uniqExact", "approximate": "uniqCombined64"}
_of_projection = re.compile(r",\s*(PROJECTION devices .*|\w+_projection_mode = '\w+')")
_REBUILD = "lightweight_mutation_projection_mode = 'rebuild'"  # else DELETE FROM is refused where there is a projection


def function(report: str) -> str:
    """Return the function for `--report`; where that is off, for a count that is asked for."""
    return FUNCTIONS.get(report, FUNCTIONS["exact"])


def projection(report: str, column: str) -> str:
    """Return the definition of the projection, whose name is `devices`; `column` is quoted."""
    return f"PROJECTION devices (SELECT _topic, {function(report)}({column}) GROUP BY _topic)"


def create_statements(template: str, report: str) -> list[str]:
    """Return the template of CREATE TABLE for `--report`; then, for old servers, the one without the projection."""
    plain = _of_projection.sub("", template)
    return (
        [plain]
        if report == "off"
        else [template.replace(f"_topic, {FUNCTIONS['exact']}(", f"_topic, {function(report)}("), plain]
    )


def advice(report: str, table: str, column: str) -> str:
    """Return the statements that add the projection to an existing table; names are quoted."""
    return (
        f"ALTER TABLE {table} MODIFY SETTING {_REBUILD}; ALTER TABLE {table} ADD {projection(report, column)}; "
        f"ALTER TABLE {table} MATERIALIZE PROJECTION devices"
    )
