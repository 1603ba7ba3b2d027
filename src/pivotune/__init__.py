"""Fine-tune English-centric LLMs for other languages by supervising and connecting what happens inside them."""

__version__ = "0.1.0"
