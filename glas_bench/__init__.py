"""glas-bench: which change to a recurrent VAE really helps?"""

__version__ = "0.1.0"
