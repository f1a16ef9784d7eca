"""Which assignments are skipped, and how the CPU leaves them out of its kernel.

``rule.py`` is the plain telling of the skip rule; ``cpu.c`` repeats it where it runs on a CPU, with
the memory and the forms that ``cpu.py`` gives it.
"""
