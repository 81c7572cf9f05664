"""Load a config file with its imports: migrate, merge and decode it, and answer questions about it."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiocontainerd import durations
from aiocontainerd.config import hints, log_levels, source, stock, timeouts
from aiocontainerd.config import merge as merging
from aiocontainerd.config import migrate as migration
from aiocontainerd.config.decode import HINTS, Problem, decode, origin_of
from aiocontainerd.config.plugin import Configured, PluginConfig
from aiocontainerd.config.records import (
    STREAM_PROCESSORS,
    ConfigError,
    File,
    Settings,
    StreamProgram,
)
from aiocontainerd.config.source import KeyPath, Origin, Origins, Tree, dotted
from aiocontainerd.config.spelling import respell
from aiocontainerd.config.values import kind_of

if TYPE_CHECKING:
    from aiocontainerd.config.timeouts import Timeout


class Config:
    """A loaded config: the settings, the plugins' tables, and where every value came from."""

    def __init__(self, tree: Tree, origins: Origins, *, warn_only: bool = False, warnings: Iterable[str] = ()) -> None:
        self.warnings = list(warnings)
        self._origins = origins
        self._warn_only = warn_only
        self._tree = tree
        self._plugins: Tree = tree.get("plugins", {})
        self._timeouts = timeouts.declared(())
        settings, problems = decode({k: v for k, v in tree.items() if k != "plugins"}, Settings, (), origins)
        self._settle(problems)
        if settings is None:
            raise ConfigError("the config could not be decoded")
        self.settings = settings
        self._check_settings()

    def __repr__(self) -> str:
        return f"<Config root={self.settings.root} plugins={len(self._plugins)} warnings={len(self.warnings)}>"

    def origin(self, *key: str) -> Origin:
        """Return where the value of a key came from: file and line, a flag, or `default`."""
        return origin_of(key, self._origins)

    def is_written(self, *key: str) -> bool:
        """Return whether a file or a flag sets a key."""
        tree: Any = self._tree
        for part in key:
            if not isinstance(tree, dict) or part not in tree:
                return False
            tree = tree[part]
        return True

    @property
    def plugin_tables(self) -> Mapping[str, Any]:
        """The tables of `[plugins]` as written, by plugin URI."""
        return self._plugins

    def plugin_config(self, registration: Configured) -> PluginConfig:
        """Return the decoded config of a plugin. Raises ConfigError, which names every unknown key and wrong type."""
        uri = registration.uri
        record, problems = decode(self._plugins.get(uri, {}), registration.config, ("plugins", uri), self._origins)
        self._settle(problems)
        if record is None:
            raise ConfigError(f"the config of plugin {uri} could not be decoded")
        return record

    def declare(self, registrations: Iterable[Configured]) -> None:
        """Learn the keys of `[timeouts]` that plugins declare, and their defaults."""
        self._timeouts = timeouts.declared(timeout for one in registrations for timeout in one.timeouts)

    def check_plugins(self, registrations: Iterable[Configured], *, complete: bool = True) -> None:
        """Check the table of every plugin, and the keys of `[timeouts]`. Raises ConfigError.

        So a mistake stops the start, not one plugin. If the registrations are not `complete`, because a module could
        not be loaded, an unknown key of `[timeouts]` is only a warning: that module may declare it. What names plugins
        that are not installed is a warning.
        """
        known = {registration.uri: registration for registration in registrations}
        self.declare(known.values())
        problems = self._timeout_problems(known)
        if complete:
            self._settle(problems)
        else:
            self.warnings += [problem.text for problem in problems]
        for uri in self._plugins:
            if uri in known:
                self.plugin_config(known[uri])
        self._tell_absent(known)

    def _tell_absent(self, known: Mapping[str, Configured]) -> None:
        """Keep a warning for each plugin that is named and not installed, one for all of containerd's that are not."""
        told = [*self._absent_tables(known), *self._absent_names(known), *self._odd_proxies(), *self._incomplete()]
        self.warnings = list(dict.fromkeys([*self.warnings, *told]))

    def _absent_tables(self, known: Mapping[str, Configured]) -> Iterator[str]:
        idle, told = [], 0
        for name, value in sorted(self._plugins.items()):
            origin = self.origin("plugins", name)
            if name not in known and name in stock.PLUGINS:
                idle.append(f"{name} ({origin})")
            elif name not in known:
                told += 1
                hint = (
                    hints.plugin_table(name, value, known)
                    if told <= HINTS
                    else f"[plugins.{dotted((name,))}] is of no plugin"
                )
                yield f"{origin}: {hint}"
        if idle:
            yield f"tables of plugins that only containerd has are without effect: {', '.join(idle)}"

    def _absent_names(self, known: Mapping[str, Configured]) -> Iterator[str]:
        settings = self.settings
        named: list[KeyPath] = [("disabled_plugins", u) for u in settings.disabled_plugins if u not in stock.PLUGINS]
        named += [("plugin_isolation", uri) for uri in settings.plugin_isolation]
        absent = [(key, uri) for key, uri in named if uri not in known]
        for number, (key, uri) in enumerate(absent):
            near = hints.nearest_uri(uri, {*known, *stock.PLUGINS}) if number < HINTS else ""
            yield f'{self.origin(key, uri)}: {key}: no plugin "{uri}" is installed{near}'

    def _odd_proxies(self) -> Iterator[str]:
        for name, proxy in self.settings.proxy_plugins.items():
            if proxy.type not in stock.PROXY_TYPES:
                yield f"{self.origin('proxy_plugins', name, 'type')}: {hints.proxy_type(name, proxy.type)}"

    def _incomplete(self) -> Iterator[str]:
        """Yield what a proxy plugin or stream processor needs and does not have. It will not load."""
        needed: list[tuple[str, str, Mapping[str, Any]]] = [
            ("proxy_plugins", "address", self.settings.proxy_plugins),
            *(("stream_processors", key, self.settings.stream_processors) for key in ("accepts", "returns", "path")),
        ]
        for table, key, entries in needed:
            for name, entry in entries.items():
                if not getattr(entry, key):
                    yield f"{self.origin(table, name, key)}: {dotted((table, name, key))} is missing; it will not load"

    @property
    def stream_processors(self) -> Mapping[str, StreamProgram]:
        """The tables of `[stream_processors]` by id, the default ones included."""
        return {**STREAM_PROCESSORS, **self.settings.stream_processors}

    def timeout_s(self, key: str) -> float:
        """Return the seconds of a key of `[timeouts]`; 0 means no limit.

        A key `<class>.<URI of a plugin>` that is not written has the value of its class.
        """
        written = self.settings.timeouts
        name, _ = timeouts.split_plugin_key(key)
        for candidate in (key, name):
            if candidate in written:
                return written[candidate].seconds
        known = self._timeouts.get(name)
        return timeouts.UNDECLARED_S if known is None else durations.parse(known.default)

    @property
    def timeouts(self) -> Mapping[str, Timeout]:
        """The declared keys of `[timeouts]`."""
        return self._timeouts

    def timeouts_of(self, registration: Configured) -> dict[str, float]:
        """Return the seconds of each key that a plugin may read: the daemon's, as they hold for it, and its own."""
        return timeouts.seconds_for(registration.uri, registration.timeouts, self.timeout_s)

    def _timeout_problems(self, known: Mapping[str, Configured]) -> list[Problem]:
        """Return the unknown keys of `[timeouts]`; keep a warning for those that have no effect here."""
        unknown = [key for key in self.settings.timeouts if not timeouts.is_declared(key, self._timeouts)]
        idle = [key for key in unknown if key in timeouts.STOCK_KEYS]
        if idle:
            self.warnings.append(f"{self.origin('timeouts', idle[0])}: without effect here: {', '.join(idle)}")
        problems: list[Problem] = []
        strange = set(unknown).difference(timeouts.STOCK_KEYS)
        for key in self.settings.timeouts:
            origin = self.origin("timeouts", key)
            if key in strange:
                near = timeouts.nearest(key, self._timeouts, known) if len(problems) < HINTS else ""
                hint = f'; did you mean "{near}"?' if near else ""
                text = f'{origin}: unknown key timeouts."{key}"{hint}'
                problems.append(Problem(text, True, ("timeouts", key)))
            uri = timeouts.split_plugin_key(key)[1]
            if key not in strange and uri and uri not in known:
                self.warnings.append(f'{origin}: no plugin "{uri}" is installed{hints.nearest_uri(uri, known)}')
        return problems

    def _settle(self, problems: list[Problem]) -> None:
        """Raise for problems; keep as warnings the idle keys, and with `warn_only` all unknown keys."""
        fatal = [p.text for p in problems if not (p.unknown_key and (self._warn_only or stock.is_idle(p.key)))]
        if fatal:
            raise ConfigError("\n".join(fatal))
        self.warnings = list(dict.fromkeys([*self.warnings, *(problem.text for problem in problems)]))

    def _check_settings(self) -> None:
        settings = self.settings
        for name in ("disabled_plugins", "required_plugins"):
            for uri in getattr(settings, name):
                if "." not in uri:
                    kind, whole = name.partition("_")[0], hints.whole_name(uri)
                    raise ConfigError(
                        f'{self.origin(name)}: invalid {kind} plugin URI "{uri}" expect io.containerd.x.vx'
                        + (f'; write "{whole}"' if whole else "")
                    )
        if os.path.realpath(settings.root) == os.path.realpath(settings.state):
            written = next((name for name in ("state", "root") if self.is_written(name)), "state")
            raise ConfigError(
                f"{self.origin(written)}: root and state must be different directories, both are {settings.root}"
            )
        debug = settings.debug
        checks: list[tuple[KeyPath, Callable[[str], object], str]] = [
            (("debug", "level"), log_levels.number_of, debug.level),
            (("debug", "format"), log_levels.check_format, debug.format),
        ]
        for key, check, text in checks:
            try:
                check(text)
            except ValueError as bad:
                raise ConfigError(f"{self.origin(*key)}: {dotted(key)}: {bad}") from bad


def load(
    path: Path,
    *,
    explicit: bool = True,
    warn_only: bool = False,
    flags: Mapping[KeyPath, tuple[str, Any]] | None = None,
) -> Config:
    """Load `path`, or the defaults if it is missing and not `explicit`.

    `flags` maps key paths to the flag that sets them and its value; a flag wins over every file. The ttrpc socket goes
    with the gRPC socket of a flag.
    Raises ConfigError naming file, line and key.
    """
    tree: Tree = {}
    origins: Origins = {}
    warnings: list[str] = []
    if explicit or _is_there(path):
        _load_file(path, tree, origins, warnings, seen=set())
    for key, (flag, value) in (flags or {}).items():
        if key == migration.GRPC_ADDRESS:
            migration.move_ttrpc(tree, origins, value, Origin(flag))
        _set(tree, key, value)
        origins[key] = Origin(flag)
    return Config(tree, origins, warn_only=warn_only, warnings=warnings)


def _is_there(path: Path) -> bool:
    """Return whether there is a file, or something else in its place that cannot be read."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _load_file(
    path: Path, into: Tree, origins: Origins, warnings: list[str], *, seen: set[str], importer: Origin | None = None
) -> None:
    """Merge a file into the tree, then everything it imports. Each file is read once."""
    if os.path.realpath(path) in seen:
        return
    seen.add(os.path.realpath(path))
    file = source.read(path, importer)
    tree, own = file.tree, {key: Origin(str(path), line) for key, line in file.lines.items()}
    respell(tree, File, (), own)
    try:
        version = migration.version_of(tree)
    except ConfigError as error:
        raise ConfigError(f"{origin_of(('version',), own)}: {error}") from error
    _check_types(tree, own)
    places = dict(own)
    for key, why in migration.migrate(tree, own, version):
        warnings.append(f"{origin_of(key, places)}: {why}")
    merging.merge(into, origins, tree, own)
    importer = origin_of(("imports",), places)
    for pattern in tree.get("imports", []):
        for imported in _matches(pattern, path.parent):
            _load_file(imported, into, origins, warnings, seen=seen, importer=importer)


def _check_types(tree: Tree, origins: Origins) -> None:
    """Raise ConfigError for values of a wrong type before a file is migrated. Unknown keys are found later."""
    wrong = [problem.text for problem in decode(tree, File, (), origins)[1] if not problem.unknown_key]
    plugins = tree.get("plugins")
    for uri, table in plugins.items() if isinstance(plugins, dict) else ():
        if "." in uri and not isinstance(table, dict):
            key = ("plugins", uri)
            what = f"expected `table`, got `{kind_of(table)}`"
            wrong.append(f"{origin_of(key, origins)}: {dotted(key)}: {what}; write a table: [{dotted(key)}]")
    if wrong:
        raise ConfigError("\n".join(wrong))


def _matches(pattern: str, base: Path) -> list[Path]:
    """Return the files of an import pattern, relative to the importing file. A name without `*` must exist."""
    absolute = str(base / pattern)
    if "*" not in pattern:
        return [Path(absolute)]
    return [Path(name) for name in sorted(glob.glob(absolute, include_hidden=True))]


def _set(tree: Tree, key: KeyPath, value: Any) -> None:
    for part in key[:-1]:
        tree = tree.setdefault(part, {})
    tree[key[-1]] = value
