"""Jobs as callers see them: enqueue, look, cancel, retry, progress."""
