"""The scorecard: what each way to personalize is worth to each person, on which task, and whom it hurts."""
