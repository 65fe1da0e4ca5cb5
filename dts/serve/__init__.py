"""Serving: one base and its tasks for many callers.  The engine knows nothing of HTTP; `dts.serve.http` is its face."""
