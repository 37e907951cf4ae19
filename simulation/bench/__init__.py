"""Side by side with peers: same model, people, tokens and machine, both sides in one process and one run."""
