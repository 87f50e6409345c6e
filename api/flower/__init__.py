"""The Flower dashboard on this project's Celery app."""
