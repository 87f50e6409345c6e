"""What Celery's own means show of jobs: AsyncResult and Flower's events."""
