CREATE TABLE IF NOT EXISTS {table}
(
    timestamp  DateTime64(3, 'UTC'),
    device_ip  String,
    error_code Int8,
    _topic     LowCardinality(String),
    _partition Int32,
    _offset    Int64,
    INDEX origin _offset TYPE minmax GRANULARITY 64,
    PROJECTION devices (SELECT _topic, uniqExact(device_ip) GROUP BY _topic)
)
ENGINE = MergeTree
ORDER BY device_ip
SETTINGS non_replicated_deduplication_window = 10000, lightweight_mutation_projection_mode = 'rebuild'
