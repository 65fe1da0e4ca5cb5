"""More than one machine, by Ray: calls as tasks, and `dts serve` in replicas.  Needs the extra ``ray``."""
