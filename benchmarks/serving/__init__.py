"""`dts serve` under load, beside the same server with one task and PEFT's mixed batch."""
