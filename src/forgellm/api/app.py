"""Puts the Flask application together from what it is given. Starts nothing and holds no state of its own."""

from flask import Flask

from forgellm.api import (
    access,
    admin,
    anthropic,
    auth,
    catalog,
    errors,
    events,
    jobs,
    metrics,
    native,
    ollama,
    openai,
    openapi,
    operations,
    overload,
    security,
)
from forgellm.api.context import EXTENSION, Context
from forgellm.api.gate import Gate
from forgellm.api.guarded_pool import GuardedPool
from forgellm.api.pool import Pool
from forgellm.api.wsgi_host import refuse_sync_workers
from forgellm.config import Settings, load_settings

DIALECTS = (native.DIALECT, openai.DIALECT, anthropic.DIALECT, ollama.DIALECT)
"""Every family of routes; what is printed about routes and parameters comes from here."""


def create_app(pool: Pool, settings: Settings | None = None, gate: Gate | None = None) -> Flask:
    """The WSGI application over `pool`, a Supervisor, a ModelManager or anything with their verbs.

    `settings`: those of the environment if there are none.
    `gate` bounds the requests that hold a thread; the server that runs the app closes it to stop.
    Raises ConfigError for a keys file, or a WSGI server, that cannot be used.
    """
    refuse_sync_workers()
    settings = settings or load_settings()
    app = Flask("forgellm", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    gate = gate or Gate(settings.max_streams)
    app.extensions[EXTENSION] = Context(GuardedPool(pool), settings, gate)
    app.url_map.strict_slashes = False
    access.register(app)
    security.register(app, settings)
    auth.register(app, settings)
    overload.register(app, gate)
    errors.register(app, {path: each.error_body for each in DIALECTS for path in each.paths})
    own = (
        catalog.blueprint,
        admin.blueprint,
        operations.blueprint,
        events.blueprint,
        metrics.blueprint,
        jobs.blueprint,
    )
    for each in (*(each.blueprint for each in DIALECTS), *own):
        app.register_blueprint(each)
    openapi.register(app, DIALECTS)
    return app
