"""Streams of processes: pipes and files handed to the container, terminals pumped, logger programs."""
