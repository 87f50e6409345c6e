"""The Celery side: the app, the publisher, and the tasks, each a message to one service call."""
