"""Run the plugins of one daemon: find them, order them, start and stop them, and keep what became of each.

The room imports `config`, `guard`, `interfaces` and the words. It is imported by `daemon`, `cli`, `testing` and
`aiocontainerd.plugin`, and it imports neither `daemon` nor `cli`.

registration.py   what a plugin registers: `Registration`, `PluginConfig`, `SkipPlugin`
authoring.py      `@register`: a registration on a class or a coroutine function
hookspecs.py      the pluggy hooks
discovery.py      find plugins: built-in modules, entry points, modules that TOML names
slow_loads.py     name the module that keeps the daemon from starting
trial.py          import the module of an isolated plugin in a process of its own first
loading.py        from `module:Name` to registrations
policy.py         `[plugin_policy]`: which packages may bring which plugins
placement.py      plugins outside the daemon's process: proxies, isolated ones, stream processors
registry.py       all plugins of the daemon: add, start, stop
needs.py          the kinds that plugins name: spelling, and who brings one
order.py          the order of starting
running.py        the plugins that run
life.py           the task of one plugin, from init to clean-up
init_context.py   what an init is given: `InitContext`
readiness.py      whether the daemon serves: `InitContext.ready`
daemon_info.py    what plugins may know of the daemon: `DaemonInfo`
state.py          what became of a plugin: `Plugin`, `State`
conformance.py    whether an instance has what its kind asks for
leftovers.py      tasks and threads that outlive their plugin
introspection.py  the service that lists plugins
reference.py      writes the generated documents
doc_pages.py      the pages about hooks and kinds
doc_tools.py      the page about what a plugin uses besides
doc_parts.py      parts of those pages
"""
