"""The `.proto` files, the generated modules and the table of services say the same."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aiocontainerd import api
from aiocontainerd.api import generate, names
from aiocontainerd.api.services import SERVICES

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

REPOSITORY = Path(__file__).resolve().parents[1]
WIRECHECK = REPOSITORY.parent / "shared" / "tools" / "wirecheck"
COMMON = "google.protobuf"


@pytest.fixture(scope="module")
def descriptor_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "set.bin"
    sources = sorted(str(path.relative_to(generate.PROTO)) for path in generate.PROTO.rglob("*.proto"))
    command = [
        sys.executable, "-m", "grpc_tools.protoc", "-I.", f"-I{files('grpc_tools') / '_proto'}", "--include_imports",
        f"--descriptor_set_out={out}", *sources,
    ]  # fmt: skip
    subprocess.run(command, cwd=generate.PROTO, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def compiled(descriptor_set: Path) -> list[FileDescriptorProto]:
    from google.protobuf import descriptor_pb2

    return list(descriptor_pb2.FileDescriptorSet.FromString(descriptor_set.read_bytes()).file)


def messages(compiled: list[FileDescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    """Yield every message of our packages by its full name, nested ones too."""

    def walk(prefix: str, found: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
        name = f"{prefix}.{found.name}"
        yield name, found
        for nested in found.nested_type:
            if not nested.options.map_entry:
                yield from walk(name, nested)

    for file in compiled:
        if file.package != COMMON:
            for message in file.message_type:
                yield from walk(file.package, message)


def type_name(field: FieldDescriptorProto) -> str:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

    return str(Field.Type.Name(field.type)).removeprefix("TYPE_").lower()


def declared(message: DescriptorProto) -> dict[int, tuple[Any, ...]]:
    """Number to type, what the entries of a map are, repeated, optional, and the name of the oneof."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    found: dict[int, tuple[Any, ...]] = {}
    for field in message.field:
        repeated = field.label == Field.LABEL_REPEATED
        entry = entries.get(field.type_name.rpartition(".")[2]) if repeated else None
        group = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
        if entry is not None:
            found[field.number] = ("map", tuple(type_name(f) for f in entry.field), False, None)
        else:
            found[field.number] = (type_name(field), (), repeated, None if field.proto3_optional else group)
    return found


def metadata(cls: Any) -> list[Any]:
    return [field.metadata["betterproto"] for field in dataclasses.fields(cls)]


def generated(cls: type) -> dict[int, tuple[Any, ...]]:
    found: dict[int, tuple[Any, ...]] = {}
    for meta in metadata(cls):
        entry = tuple(part.proto_type for part in meta.map_meta or ())
        found[meta.number] = (meta.proto_type, entry, meta.repeated, meta.group)
    return found


def test_every_message_has_a_generated_class_with_its_fields(compiled: list[FileDescriptorProto]) -> None:
    compared = 0
    for name, message in messages(compiled):
        compared += 1
        assert generated(names.message_class(name)) == declared(message), name
    assert compared > 300


def test_the_generated_names_are_the_declared_ones(compiled: list[FileDescriptorProto]) -> None:
    for name, message in messages(compiled):
        cls = names.message_class(name)
        assert names.class_name(cls) == name
        assert len(generated(cls)) == len(message.field), name


def test_the_table_of_services_is_that_of_the_proto_files(descriptor_set: Path) -> None:
    assert generate.services_table(descriptor_set) == (generate.API / "services.py").read_text()


def test_every_type_of_the_table_of_services_has_a_class() -> None:
    for methods in SERVICES.values():
        for request, response, _, _ in methods.values():
            names.message_class(request)
            names.message_class(response)


def test_every_alias_is_a_package_and_every_package_has_an_alias(compiled: list[FileDescriptorProto]) -> None:
    assert sorted(api.PACKAGES.values()) == sorted({file.package for file in compiled})
    for alias in api.PACKAGES:
        assert getattr(api, alias) is getattr(api, alias)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = api.nothing


def test_times_stay_exact_messages(compiled: list[FileDescriptorProto]) -> None:
    for name, message in messages(compiled):
        for field in message.field:
            if field.type_name == ".google.protobuf.Timestamp":
                unwrapped = {meta.number: meta.unwrap for meta in metadata(names.message_class(name))}
                assert unwrapped[field.number] is None, f"{name}.{field.name}"


def test_stale_and_missing_files_are_told(tmp_path: Path) -> None:
    for tree, text in (("want", "1"), ("have", "2")):
        (tmp_path / tree / "a").mkdir(parents=True)
        (tmp_path / tree / "a" / "changed.py").write_text(text)
        (tmp_path / tree / "same.py").write_text("same")
    (tmp_path / "want" / "missing.py").touch()
    (tmp_path / "have" / "left_over.py").touch()
    stale = generate.differences(tmp_path / "want", tmp_path / "have")
    assert stale == ["a/changed.py", "left_over.py", "missing.py"]


def test_a_timestamp_field_is_rewritten_and_its_import_dropped(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text(
        'import datetime\n    at: "datetime.datetime | None" = betterproto2.field(3, betterproto2.TYPE_MESSAGE, '
        "unwrap=lambda: g__.Timestamp, optional=True)\n"
    )
    generate.keep_nanoseconds(module)
    assert module.read_text() == (
        '    at: "g__.Timestamp | None" = betterproto2.field(3, betterproto2.TYPE_MESSAGE, optional=True)\n'
    )


@pytest.mark.skipif(not WIRECHECK.is_file(), reason="the wire tables are not beside this checkout")
def test_the_proto_files_are_those_of_the_wire_tables(descriptor_set: Path) -> None:
    done = subprocess.run([sys.executable, str(WIRECHECK), str(descriptor_set)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
