"""A dry run does not say that it would write where it would not."""

import pytest

from tests.dts.cli.said import said
from tests.dts.cli.writing import WRITERS, writing

WORDS = "without --dry-run nothing would be written"


@pytest.mark.parametrize("verb", WRITERS)
def test_what_would_be_refused_is_said_and_stops_nothing(dts, models, verb):
    made = dts("compress", models / "base", models / "one", "-o", "a", "--rank-fraction", "50%")
    assert made.exit_code == 0, made.stderr
    words = writing(models)[verb]
    foretold = dts(verb, *words, "--out", models / "base", "--dry-run")
    assert foretold.exit_code == 0 and WORDS in said(foretold), said(foretold)
    refused = dts(verb, *words, "--out", models / "base")
    assert refused.exit_code == 2
    free = dts(verb, *words, "--out", "free", "--dry-run")
    assert free.exit_code == 0 and WORDS not in said(free)
