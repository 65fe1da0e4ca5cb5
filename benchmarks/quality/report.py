"""One static page with plots, and the figures behind them as JSON."""


def write(out, suite, cells, rows): ...
