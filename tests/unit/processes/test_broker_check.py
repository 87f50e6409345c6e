"""What a broker says as a process starts: that it will never take us, or that it is away."""

from unittest.mock import MagicMock

import pytest
from amqp.exceptions import AccessRefused, ConnectionForced

from promptstack.config.errors import ConfigurationError
from promptstack.tasks.connections import check_broker


def answering(error: Exception) -> MagicMock:
    app = MagicMock()
    app.connection_for_write().connect.side_effect = error
    app.connection_for_write().__enter__.return_value = app.connection_for_write()
    return app


@pytest.mark.parametrize(
    "error", [ConnectionForced("CONTROLLED_SHUTDOWN"), ConnectionRefusedError(), TimeoutError()]
)
def test_a_broker_that_is_away_is_waited_for(error: Exception) -> None:
    app = answering(error)
    check_broker(app, "CELERY_BROKER_URL")
    app.connection_for_write().connect.assert_called_once()


def test_a_broker_that_refuses_us_is_not() -> None:
    with pytest.raises(ConfigurationError, match="CELERY_BROKER_URL: the server refuses"):
        check_broker(answering(AccessRefused("no")), "CELERY_BROKER_URL")
