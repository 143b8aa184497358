"""From a dense model to a fast one, and the proof that it still works.

Imports the compiler, the engines and the pipelines; the facade and the command line import it, and
nothing else does.
"""
