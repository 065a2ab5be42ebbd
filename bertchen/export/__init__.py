"""From a checkpoint to a folder for the Hugging Face Hub."""

from bertchen.export.checkpoint import load_checkpoint_model
from bertchen.export.facts import CardFacts
from bertchen.export.hf import export_checkpoint, export_model

__all__ = ["CardFacts", "export_checkpoint", "export_model", "load_checkpoint_model"]
