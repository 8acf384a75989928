"""From a CSV of texts and labels to a fine-tuned BERT and its confusion matrix, on whatever GPUs the machines have."""

__version__ = "1.0.0"
