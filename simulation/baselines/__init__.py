"""Other ways to share LoRA between people, in the clear: baselines for comparison, never a private federation."""
