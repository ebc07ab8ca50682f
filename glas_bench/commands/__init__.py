"""The commands: what each does, from a request to an answer; `cli` parses and prints.

The one package that may import every other.
"""
