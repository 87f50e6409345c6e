"""A certificate authority, and a server of TLS in front of a real one that speaks none."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.processes import join


class Authority:
    """Signs certificates; who trusts `file` takes these."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self.file = folder / f"{name}.pem"
        ca = x509.BasicConstraints(ca=True, path_length=None)
        signed = self._sign(self._name, self._key.public_key(), ca)
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def certificate(self, host: str) -> Path:
        """Make a file with the certificate of a host, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        signed = self._sign(_named(host), key.public_key(), names)
        file = self._folder / f"{host}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + signed.public_bytes(serialization.Encoding.PEM)
        )
        return file

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        unsigned = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(extension, critical=True)
        )
        return unsigned.sign(self._key, hashes.SHA256())


class TlsServer:
    """Takes connections on `port`, and hands on what comes to the server behind it."""

    def __init__(self, certificate: Path, behind: str) -> None:
        """Stand before the Unix socket `behind`."""
        self.connections = 0
        self.heard = bytearray()
        """All that clients have said once they took the certificate."""
        self._behind = behind
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def serve(self) -> None:
        """Serve until `close`."""
        while True:
            try:
                taken, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(taken,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _talk(self, taken: socket.socket) -> None:
        with (
            suppress(OSError),
            self._context.wrap_socket(taken, server_side=True) as client,
            socket.socket(socket.AF_UNIX) as server,
        ):
            server.connect(self._behind)
            answers = threading.Thread(target=self._pump, args=(server, client), daemon=True)
            answers.start()
            self._pump(client, server, heard=self.heard)
            join(answers)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, heard: bytearray | None = None) -> None:
        with suppress(OSError):
            while said := source.recv(65_536):
                if heard is not None:
                    heard += said
                sink.sendall(said)
        for end in (source, sink):
            with suppress(OSError):
                socket.socket.shutdown(end, socket.SHUT_RDWR)


@contextmanager
def tls_before(behind: str, certificate: Path) -> Iterator[TlsServer]:
    """Serve TLS before a Unix socket."""
    server = TlsServer(certificate, behind)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        join(thread)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
