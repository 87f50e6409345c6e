"""The commands about single jobs: enqueue, watch, list, cancel."""
