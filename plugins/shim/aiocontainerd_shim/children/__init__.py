"""Processes that are or become children of this one. Imports the core only; every other room may import it.

reaper      starts programs, and takes the exits of all children
sealed      copies of OCI runtimes in memory, executed in place of their files
"""
