"""From an export to a server that answers until it is told to end."""

import logging
import socket
import tempfile
from pathlib import Path

from .settings import ServeConfig

log = logging.getLogger(__name__)
_KEEP_S = 75  # idle connections: longer than load balancers do (60 s), or they send into one that is being closed
_BACKLOG = 2_048


def serve(config: ServeConfig) -> None:
    """Serve an export over HTTP until SIGTERM or Ctrl-C; what has been asked by then is answered.

    Raises:
        ImportError: without ``placerank[serve]``.
        FileNotFoundError, ValueError: the export, or a delta, is not whole.
        OSError: the address is taken.
    """
    try:
        import uvicorn

        from .app import Service
    except ImportError as error:
        if error.name not in ("uvicorn", "starlette", "prometheus_client"):
            raise
        raise ImportError(f"{error}: serving needs pip install 'placerank[serve]'", name=error.name) from error
    from .versions import Versions

    with (
        _listening(config.host, config.port) as listener,
        tempfile.TemporaryDirectory(prefix="placerank-serve-") as work,
    ):
        versions = Versions(config.export, config.deltas, Path(work))
        service = Service(versions, config.waiting, config.watch_s)
        host, port = listener.getsockname()[:2]
        log.info("%s, version %s, at http://%s:%d", config.export, versions.current.name, host, port)
        server = uvicorn.Server(
            uvicorn.Config(service.app(), log_level="warning", access_log=False, timeout_keep_alive=_KEEP_S)
        )
        listener.listen(_BACKLOG)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn passes on, when all is answered, what it was ended by
            log.info("all that was asked is answered")


def _listening(host: str, port: int) -> socket.socket:
    """A socket at an address; nobody is let in yet."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise OSError(f"can't listen at {host}, port {port}: {error}; choose another --host or --port") from error
    return listener
