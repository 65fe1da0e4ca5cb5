"""The client that tests of HTTP ask with; where it cannot be had they are skipped, with the reason."""

import pytest

pytest.importorskip("fastapi", reason="needs fastapi (pip install 'dts-merge[serve]')")
pytest.importorskip("uvicorn", reason="needs uvicorn (pip install 'dts-merge[serve]')")
pytest.importorskip("prometheus_client", reason="needs prometheus-client (pip install 'dts-merge[serve]')")
try:
    from fastapi.testclient import TestClient
except (ImportError, RuntimeError) as error:  # it asks for httpx, or for what came after it
    pytest.skip(f"fastapi's test client cannot be had: {str(error).strip()}", allow_module_level=True)

__all__ = ["TestClient"]
