"""`python -m promptstack.worker`: what `promptstack worker` does."""

from promptstack.config.loading import load

if __name__ == "__main__":
    load("promptstack.worker.start").run()
