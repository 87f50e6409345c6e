"""What the product does. Knows no Celery and no HTTP framework."""
