"""The server beneath: binds its address first, serves until it is told to stop, and ends what runs before it goes."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import quote

from cdkit.core.errors import ConfigError, MissingExtraError, OutputError
from cdkit.serving.access import LOOPBACK

if TYPE_CHECKING:
    from starlette.applications import Starlette

# Seconds that running requests have to end.
PATIENCE = 10
IDLE_SECONDS = 5
WAITING_CONNECTIONS = 512


def require_server() -> None:
    """Raise MissingExtraError unless the extra `serve` is installed."""
    try:
        import starlette
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Serving", extra="serve") from error
    del starlette


def require_token(host: str, token: str | None) -> None:
    """Raise ConfigError for a host that others can reach, where no secret keeps them out."""
    if not is_loopback(host) and not token:
        hint = "Add --token with a secret, or leave --host out to serve this machine alone."
        raise ConfigError(f"--host {host} lets everybody in who reaches this machine.", hint=hint)


@dataclass(frozen=True)
class Address:
    """Where a service listens: the socket is bound, so that its port is known and nobody else's."""

    host: str
    port: int
    listener: socket.socket

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def url(self, token: str | None = None) -> str:
        """The address to open in a browser on this machine."""
        name = "127.0.0.1" if self.host in ("0.0.0.0", "") else "[::1]" if self.host in ("::", "::1") else self.host
        return f"http://{name}:{self.port}/" + (f"?token={quote(token)}" if token else "")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        # A name may begin with 127 and lead anywhere.
        return host in LOOPBACK


def bind(host: str, port: int) -> Address:
    """Bind a port, any free one for 0; raises OutputError when it is taken, ConfigError for a host not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=WAITING_CONNECTIONS)
    except socket.gaierror as error:
        raise ConfigError(f"--host {host} is no address of this machine.", hint="Use 127.0.0.1.") from error
    except OSError as error:
        hint = "Another program listens there? Choose another --port; 0 takes any that is free."
        raise OutputError(f"{host}:{port} cannot be listened at: {error.strerror}.", hint=hint) from error
    return Address(host, int(listener.getsockname()[1]), listener)


def serve(app: Starlette, address: Address) -> None:
    """Answer requests until a signal to stop comes; what runs then may take PATIENCE seconds to end."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=PATIENCE,
    )
    # uvicorn sends itself the signal again when it has ended: here that is the end that was asked for.
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[address.listener])
