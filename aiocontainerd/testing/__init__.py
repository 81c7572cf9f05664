"""Contract suites and fakes for authors of plugins, as a pytest plugin."""
