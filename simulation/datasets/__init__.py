"""Loaders: from a published or private source to people with documents and a split."""
