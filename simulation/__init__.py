"""Many devices on one machine or a cluster: people and their data, the engine, evaluation, reports."""
