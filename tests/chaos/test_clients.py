"""The clients of a run under fire, which must end whatever the server says."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

from promptstack.chaos.clients import Clients
from promptstack.chaos.load import Target
from tests.processes import join


class Refusing(BaseHTTPRequestHandler):
    """Answers what no client of the API expects."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        pass


def test_an_answer_that_no_client_expects_is_not_asked_for_again() -> None:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever).start()
        target = Target("demo", "demo-1", embedding_model=None)
        url = f"http://127.0.0.1:{server.server_port}"
        clients = Clients(url, "ps_key", target, name="test", clients=2, seconds=0.0)
        sending = Thread(target=clients.run, args=(3,))
        sending.start()
        sending.join(30.0)
        has_ended = not sending.is_alive()
        clients.stop()
        join(sending)
        server.shutdown()
    assert has_ended
    assert [told[:3] for told in clients.surprises] == ["500"] * 3
