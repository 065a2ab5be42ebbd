"""BERTchen: pretrain, fine-tune and publish German MosaicBERT encoders."""

__version__ = "0.1.0"
