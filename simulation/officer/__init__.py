"""`confide audit report`: the privacy officer's report on a RUN as HTML, PDF and JSON, rebuilt from files alone."""
