"""Tasks in vLLM's engine from their packed bits: each token of a batch its own.

layers    what all loaded tasks change of one layer
batch     which task each token of the running batch is of
tasks     which adapters are loaded, and in which slot
engine    the one module that reaches into vLLM where nothing is promised: it names the version and refuses others
"""
