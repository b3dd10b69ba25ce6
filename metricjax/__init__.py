"""Deep metric learning for image retrieval in JAX/Flax."""

__version__ = "0.1.0"
