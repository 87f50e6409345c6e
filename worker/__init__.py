"""The process that consumes: start-up, heartbeat, reconciler, shutdown."""
