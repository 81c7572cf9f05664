"""`actr`: the command line client, a module for each group of commands. `main` finds the module of a command."""
