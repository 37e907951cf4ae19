"""The device's face: a page and an OpenAI-compatible API, served on loopback by the program that holds the model."""
