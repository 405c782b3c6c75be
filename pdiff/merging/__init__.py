"""What people do with several fine-tuned networks without training: merge what they changed."""
