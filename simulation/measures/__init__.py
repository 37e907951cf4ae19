"""Measures of single answers, rankings, ratings and of personalization itself; arrays and texts in, numbers out."""
