"""The device: a person's text, the model that learns from it, and the answers that may leave it.

Text never leaves this package. What does leave goes through `privacy.answer` as a clipped and noised
vector, or is read by the person it belongs to.
"""
