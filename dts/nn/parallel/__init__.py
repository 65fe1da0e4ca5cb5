"""Layers whose parameters lie on several processes: what of a task each of them has, and how they add it up.

split      what this process has of a layer's parameters, read off its DTensors, and cutting a task to that
local      a layer's forward of local tensors where its input is a DTensor
bind       forwards that a library put in front of a module's own
agreed     one choice of tasks for all processes
sharded    models of which every forward gathers the parameters (FSDP2), and what is refused of parallel models
"""
