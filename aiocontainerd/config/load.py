"""Load a config file with its imports: migrate, merge and decode it, and answer questions about it."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aiocontainerd import durations
from aiocontainerd.config import log_levels, source, timeouts
from aiocontainerd.config import merge as merging
from aiocontainerd.config import migrate as migration
from aiocontainerd.config.decode import Problem, decode, origin_of
from aiocontainerd.config.migrate import Origins
from aiocontainerd.config.plugin import Configured, PluginConfig
from aiocontainerd.config.records import (
    STREAM_PROCESSORS,
    ConfigError,
    Settings,
    StreamProgram,
    Tables,
)
from aiocontainerd.config.source import KeyPath, Origin, Tree

if TYPE_CHECKING:
    from aiocontainerd.config.timeouts import Timeout


class Config:
    """A loaded config: the settings, the plugins' tables, and where every value came from."""

    def __init__(self, tree: Tree, origins: Origins, *, warn_only: bool = False) -> None:
        self.warnings: list[str] = []
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
        not be loaded, an unknown key of `[timeouts]` is only a warning: that module may declare it. Tables and lists
        that name plugins which are not installed get one warning.
        """
        known = {registration.uri: registration for registration in registrations}
        self.declare(known.values())
        self._settle(self._timeout_problems(known, complete))
        for uri in self._plugins:
            if uri in known:
                self.plugin_config(known[uri])
        absent = sorted(uri for uri in self._plugins if uri not in known)
        named = [timeouts.split_plugin_key(key)[1] for key in self.settings.timeouts]
        named += self.settings.disabled_plugins
        absent += [uri for uri in dict.fromkeys(named) if uri and uri not in known and uri not in absent]
        if absent:
            self.warnings.append(f"config names plugins that are not installed here; ignored: {', '.join(absent)}")

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
                return durations.parse(written[candidate])
        known = self._timeouts.get(name)
        return timeouts.UNDECLARED_S if known is None else durations.parse(known.default)

    @property
    def timeouts(self) -> Mapping[str, Timeout]:
        """The declared keys of `[timeouts]`."""
        return self._timeouts

    def timeouts_of(self, registration: Configured) -> dict[str, float]:
        """Return the seconds of each key that a plugin may read: the daemon's, as they hold for it, and its own."""
        return timeouts.seconds_for(registration.uri, registration.timeouts, self.timeout_s)

    def _timeout_problems(self, known: Mapping[str, Configured], complete: bool) -> list[Problem]:
        """Return what is wrong with the keys of `[timeouts]`; keep a warning for those that have no effect here."""
        unknown = [key for key in self.settings.timeouts if not timeouts.is_declared(key, self._timeouts)]
        idle = [key for key in unknown if key in timeouts.STOCK_KEYS]
        if idle:
            self.warnings.append(f"[timeouts]: without effect here: {', '.join(idle)}")
        problems = []
        for key in unknown:
            if key not in timeouts.STOCK_KEYS:
                near = timeouts.nearest(key, self._timeouts, known)
                hint = f'; did you mean "{near}"?' if near else ""
                text = f'{self.origin("timeouts", key)}: unknown key timeouts."{key}"{hint}'
                problems.append(Problem(text, True))
        if complete:
            return problems
        self.warnings += [problem.text for problem in problems]
        return []

    def _settle(self, problems: list[Problem]) -> None:
        """Raise for problems; with `warn_only`, keep unknown keys as warnings."""
        fatal = [p.text for p in problems if not (self._warn_only and p.unknown_key)]
        if fatal:
            raise ConfigError("\n".join(fatal))
        self.warnings += [p.text for p in problems if p.text not in self.warnings]

    def _check_settings(self) -> None:
        settings = self.settings
        for name in ("disabled_plugins", "required_plugins"):
            for uri in getattr(settings, name):
                if "." not in uri:
                    kind = name.partition("_")[0]
                    raise ConfigError(
                        f'{self.origin(name)}: invalid {kind} plugin URI "{uri}" expect io.containerd.x.vx'
                    )
        if not (settings.root and settings.state):
            raise ConfigError(f"{self.origin('root')}: root and state must not be empty")
        if os.path.realpath(settings.root) == os.path.realpath(settings.state):
            raise ConfigError(f"root and state must be different directories, both are {settings.root}")
        debug = settings.debug
        checks: list[tuple[KeyPath, Callable[[str], object], str]] = [
            (("debug", "level"), log_levels.number_of, debug.level),
            (("debug", "format"), log_levels.check_format, debug.format),
            (("debug", "block_threshold"), durations.parse, debug.block_threshold),
            *((("timeouts", key), durations.parse, text) for key, text in settings.timeouts.items()),
        ]
        for key, check, text in checks:
            try:
                check(text)
            except ValueError as bad:
                raise ConfigError(f"{self.origin(*key)}: {'.'.join(key)}: {bad}") from bad


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
    if explicit or path.exists():
        _load_file(path, tree, origins, seen=set(), inherited_version=1)
    for key, (flag, value) in (flags or {}).items():
        if key == migration.GRPC_ADDRESS:
            migration.move_ttrpc(tree, origins, value, Origin(flag))
        _set(tree, key, value)
        origins[key] = Origin(flag)
    return Config(tree, origins, warn_only=warn_only)


def _load_file(path: Path, into: Tree, origins: Origins, *, seen: set[Path], inherited_version: int) -> None:
    """Merge a file into the tree, then everything it imports. Each file is read once."""
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    file = source.read(path)
    own = {key: Origin(str(path), line) for key, line in file.lines.items()}
    try:
        version = migration.version_of(file.tree, inherited_version)
    except ConfigError as error:
        raise ConfigError(f"{file.origin(('version',))}: {error}") from error
    tree = file.tree
    _check_types(tree, Tables, own)
    migration.migrate(tree, own, version)
    _check_types({key: value for key, value in tree.items() if key != "plugins"}, Settings, own)
    merging.merge(into, origins, tree, own)
    for pattern in tree.get("imports", []):
        for imported in _matches(pattern, path.parent):
            _load_file(imported, into, origins, seen=seen, inherited_version=version)


def _check_types(tree: Tree, kind: type[msgspec.Struct], origins: Origins) -> None:
    """Raise ConfigError for values of a wrong type before a file is migrated. Unknown keys are found later."""
    wrong = [problem.text for problem in decode(tree, kind, (), origins)[1] if not problem.unknown_key]
    if wrong:
        raise ConfigError("\n".join(wrong))


def _matches(pattern: str, base: Path) -> list[Path]:
    """Return the files of an import pattern, relative to the importing file. A plain name must exist."""
    absolute = str(base / pattern)
    return [Path(p) for p in sorted(glob.glob(absolute))] if glob.has_magic(pattern) else [Path(absolute)]


def _set(tree: Tree, key: KeyPath, value: Any) -> None:
    for part in key[:-1]:
        tree = tree.setdefault(part, {})
    tree[key[-1]] = value
