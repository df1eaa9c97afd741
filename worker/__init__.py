"""Kafka events into Redis or ClickHouse: distinct devices counted, every event stored, nothing lost, nothing twice."""
