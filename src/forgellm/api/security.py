"""Who may call: Host names (DNS rebinding), origins of web pages (CORS and cross-site posts). Knows no routes."""

import ipaddress
import re
from urllib.parse import urlsplit

from flask import Flask, Response, request

from forgellm.api.errors import ForbiddenHost, ForbiddenOrigin
from forgellm.config import Settings

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

# Each client library adds headers of its own; what an origin that may call puts there is up to it.
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+){0,63}")
_USUAL_HEADERS = "Content-Type, Accept, Authorization, X-Api-Key"

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def register(app: Flask, settings: Settings) -> None:
    """Check every request of `app`, and give the configured origins their CORS headers."""
    hosts = LOOPBACK_NAMES | {name.lower() for name in (settings.host, *settings.allowed_hosts)}
    is_local = is_loopback(settings.host)
    origins = frozenset(origin.rstrip("/") for origin in settings.cors_origins)

    def check() -> None:
        host = request.environ.get("HTTP_HOST")
        if host is not None and not _answers_to(host, hosts, is_local=is_local):
            use = "localhost or 127.0.0.1" if is_local else "its IP address"
            raise ForbiddenHost(f"this server does not answer for {host!r}; use {use}, or add it to allowed_hosts")
        origin = request.environ.get("HTTP_ORIGIN")
        if origin is None or request.method in _SAFE_METHODS or _allowed(origin, origins):
            return
        if urlsplit(origin).netloc != host:
            raise ForbiddenOrigin(f"web pages of {origin} may not call this server; add it to cors_origins")

    def answer(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        origin = request.environ.get("HTTP_ORIGIN")
        if origins:
            response.headers.add("Vary", "Origin")
        if origin is not None and _allowed(origin, origins):
            response.headers["Access-Control-Allow-Origin"] = "*" if "*" in origins else origin
            response.headers["Access-Control-Expose-Headers"] = "X-Request-Id, Retry-After"
            if request.method == "OPTIONS":
                response.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE, OPTIONS"
                asked = request.headers.get("Access-Control-Request-Headers", "")
                allowed = asked if _HEADER_NAMES.fullmatch(asked) else _USUAL_HEADERS
                response.headers["Access-Control-Allow-Headers"] = allowed
                response.headers["Access-Control-Max-Age"] = "600"
        return response

    app.before_request(check)
    app.after_request(answer)


def _answers_to(host: str, hosts: frozenset[str], *, is_local: bool) -> bool:
    """Whether a page can have come by `host` honestly. Only a name can be rebound, a literal address cannot."""
    if "*" in hosts:
        return True
    name = _host_name(host)
    return name in hosts or (not is_local and name is not None and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _allowed(origin: str, origins: frozenset[str]) -> bool:
    return "*" in origins or origin in origins


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None if it is not one."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
