"""What runs batches."""
