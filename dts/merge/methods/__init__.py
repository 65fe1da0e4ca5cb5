"""One merging method a file; importing this package fills ``dts.merge.registry.METHODS``."""

from . import average, task_arithmetic, ties, dare, breadcrumbs, consensus_ta  # noqa: F401, I001  (order of the table)
from . import fisher, regmean, tsv, iso_c, knots, remainder  # noqa: F401
