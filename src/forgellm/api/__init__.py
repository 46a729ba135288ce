"""The HTTP API: a Flask application over a pool, and the server that runs it. Never imports the worker or mlx."""
