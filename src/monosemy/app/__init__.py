"""The local web app: what a run is, its features, and what they do, in a browser."""

from monosemy.app.server import make_app, serve

__all__ = ["make_app", "serve"]
