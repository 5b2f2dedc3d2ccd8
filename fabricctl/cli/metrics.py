"""``fabricctl metrics``: the cluster for Prometheus."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click

from fabricctl.errors import SlurmError, SystemRefusedError, UsageError

LEAST_AGE_S = 5.0  # a scrape more often than this gets the answer of before


@click.command()
@click.option("--listen", metavar="ADDRESS:PORT",
              help="Serve GET /metrics there, e.g. 127.0.0.1:9817, until it is ended.")  # fmt: skip
def command(listen: str | None) -> None:
    """Nodes, jobs and open findings as OpenMetrics: once, or for a Prometheus to scrape.

    Labels are states and kinds, never names: as many series for ten nodes as for ten thousand.
    """
    if listen is None:
        click.echo(gather(), nl=False)
        return
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"metrics: --listen {listen[:40]!r}: ADDRESS:PORT, e.g. 127.0.0.1:9817")
    try:
        server = make_server(host.strip("[]"), int(port))
    except OSError as error:
        raise SystemRefusedError(f"metrics: {listen}: {error.strerror or error}") from None
    click.echo(f"fabricctl: http://{listen}/metrics", err=True)
    with server:
        server.serve_forever()


def gather() -> str:
    """One scrape, of fabricd where one runs on this host, else of Slurm; when Slurm does not answer
    it says so and nothing of Slurm."""
    from fabricctl import config
    from fabricctl.fleet.metrics import render
    from fabricctl.fleet.overview import overview
    from fabricctl.slurm.choose import open_slurm

    begin_s = time.monotonic()
    head = config.load().head.socket
    if head.exists():
        from fabricctl.fleet.head.service import ask

        try:
            return ask(head, "metrics").decode()
        except SystemRefusedError:
            pass  # it was killed and left its socket: Slurm is asked
    try:
        slurm = open_slurm("commands")
        nodes, jobs = slurm.nodes(), slurm.jobs()
    except SlurmError:
        return render(None, (), time.monotonic() - begin_s)
    took_s = time.monotonic() - begin_s
    return render(overview(nodes, jobs), nodes, took_s)


class _Cache:
    """One question to Slurm at a time, however many scrape."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text, self._until_s = "", 0.0

    def text(self) -> str:
        with self._lock:
            if time.monotonic() >= self._until_s:
                self._text = gather()
                self._until_s = time.monotonic() + LEAST_AGE_S
            return self._text


def make_server(host: str, port: int) -> ThreadingHTTPServer:
    """A server of /metrics and nothing else."""
    from fabricctl.fleet.metrics import CONTENT_TYPE

    cache = _Cache()

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # of a client that says nothing

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = cache.text().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    return Server((host, port), Handler)
