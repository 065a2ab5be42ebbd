"""Tasks that a pretrained encoder is fine-tuned and evaluated on: classification, tagging, question answering."""
