"""A Ray that does not come is an error of where it runs, in words."""

from types import SimpleNamespace

import pytest

from dts.ray import cluster

SLOW = "The current node timed out during startup. This could happen because ..."


@pytest.mark.parametrize(
    "why, says", [(SLOW, "timed out during startup.*on a busy machine it may come later"), ("no disk", "no disk$")]
)
def test_one_of_this_machines_own_that_does_not_start(monkeypatch, why, says):
    def init(**words):
        raise Exception(why)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "ray_itself", lambda: SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(ConnectionError, match=f"Ray did not start on this machine: .*{says}"):
        with cluster.connected(cluster.Cluster()):
            pass
