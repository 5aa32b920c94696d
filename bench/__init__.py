"""The benchmark: Entrepot beside nginx and Debian's docker-registry, in one run, on one machine.

Run it with `make bench` or `python -m bench`. docs/benchmarks.md says what is measured and how to read it.
Nothing here is part of the product, and nothing here imports it: Entrepot is a program like the others.
"""
