"""Base of all configurations: frozen models with every default, read from YAML with dotted overrides.

An unknown key, a wrong type or an impossible combination is one `ConfigError` that names the file, the key,
the value found and what is allowed.
"""

import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from topreco.core.errors import TopRecoError, nearest

Positive = Annotated[float, Field(gt=0)]
Mass = Annotated[float, Field(gt=0, lt=1e5)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]


class ConfigError(TopRecoError):
    """A configuration that cannot be used."""


class Config(BaseModel):
    """Base of all configurations: immutable, refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    short_forms: ClassVar[Mapping[str, str]] = {}
    """Key inside a section that text in place of the section stands for, by key of the section."""

    def absolute(self) -> Self:
        """The same configuration with every path absolute, for workers that run in another folder."""
        changed = {name: _absolute(value) for name, value in self if _absolute(value) != value}
        return self.model_copy(update=changed) if changed else self


def _absolute(value: Any) -> Any:
    """A value in which all paths are absolute."""
    if isinstance(value, Path):
        return value.absolute()
    if isinstance(value, Config):
        return value.absolute()
    if isinstance(value, dict):
        return {key: _absolute(inner) for key, inner in value.items()}
    return value


def merged(*contents: Mapping[str, Any], whole: Collection[str] = ()) -> dict[str, Any]:
    """Merge plain data, later ones winning; mappings are merged too, except those of the keys in `whole`."""
    both: dict[str, Any] = {}
    for content in contents:
        for key, value in content.items():
            inner = both.get(key)
            if isinstance(inner, dict) and isinstance(value, Mapping) and key not in whole:
                both[key] = merged(inner, value, whole=whole)
            else:
                both[key] = value
    return both


C = TypeVar("C", bound=Config)


def shipped_folder() -> Path:
    """Folder of the configurations that come with the package."""
    # In the wheel it lies inside the package, in a checkout beside it.
    inside = Path(str(resources.files("topreco"))) / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def shipped_configs() -> dict[str, Path]:
    """Configurations that come with the package, by file name (`dilepton.yaml`)."""
    folder = shipped_folder()
    names = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.yaml"))}
    return {name: path for name, path in names.items() if not name.startswith("presets/")}


def find_config(source: str | Path) -> Path:
    """File of a configuration given as a path or as the bare name of a shipped one.

    Raises
    ------
    ConfigError
        If there is neither.
    """
    path = Path(source)
    if path.is_file():
        return path
    shipped = shipped_configs()
    name = str(source)
    for candidate in (name, f"{name}.yaml"):
        if candidate in shipped:
            return shipped[candidate]
    raise ConfigError(
        f"--config {name}: no such file, and no shipped configuration of that name; "
        f"shipped: {', '.join(shipped) or 'none'}{nearest(name, shipped)}"
    )


def load_config(
    kind: type[C],
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> C:
    """Read a configuration.

    Parameters
    ----------
    kind
        Class of the configuration.
    source
        YAML file or bare name of a shipped configuration; None starts from the defaults.
    overrides
        Dotted assignments such as ``optimiser.learning_rate=3e-4``, see `assign`.
    options
        Values by dotted key, which win over the overrides; None is an option that was not given.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value is not allowed.
    """
    origin = "command line"
    content: dict[str, Any] = {}
    if source is not None:
        path = find_config(source)
        origin = str(path)
        content = with_sections(read_yaml(path), kind.short_forms)
    assign(content, overrides, kind.short_forms)
    for key, value in (options or {}).items():
        if value is not None:
            _assign(content, key.split("."), value, f"option {key}={value}")
    return build_config(kind, content, origin)


def with_sections(content: Mapping[str, Any], short_forms: Mapping[str, str]) -> dict[str, Any]:
    """Plain data in which `Config.short_forms` are written out as sections, so that they can be merged."""
    return {
        key: {short_forms[key]: value} if key in short_forms and isinstance(value, str) else value
        for key, value in content.items()
    }


def assign(
    content: dict[str, Any], overrides: Iterable[str], short_forms: Mapping[str, str] | None = None
) -> None:
    """Apply dotted assignments such as ``optimiser.learning_rate=3e-4`` to plain data, in place.

    Values are YAML without comments: numbers, text, lists, mappings, null; # has no meaning. Text that is
    assigned to a section with a short form (`Config.short_forms`) leaves the rest of the section as it is.

    Raises
    ------
    ConfigError
        If one is no assignment, or passes through something that is not a mapping.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r}: expected key=value, such as epochs=10")
        try:
            value = _with_hash(yaml.load(text.replace("#", _HASH), Loader=_Loader))  # noqa: S506 - a SafeLoader
        except _AmbiguousError as error:
            raise ConfigError(f"override {override!r}: {error}") from error
        except _NOT_YAML as error:
            raise ConfigError(f"override {override!r}: value is not YAML") from error
        keys = key.split(".")
        if isinstance(value, str) and key in (short_forms or {}):
            keys.append((short_forms or {})[key])
        _assign(content, keys, value, f"override {override!r}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Content of a YAML file, a mapping.

    Raises
    ------
    ConfigError
        If it cannot be read, has a key twice or a number that YAML 1.1 reads as nobody writes it, or is
        something else.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except _AmbiguousError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (*_NOT_YAML, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError(f"{path}: a mapping of keys to values expected, {type(loaded).__name__} found")
    return loaded or {}


def build_config(kind: type[C], content: dict[str, Any], origin: str) -> C:
    """Validated configuration from plain data; `origin` is named in errors.

    Raises
    ------
    ConfigError
        If a key or value is not allowed.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems: dict[str, str] = {}
        for problem in error.errors():
            # Alternatives of one key would all be named, and lists of bad items called too short as well.
            if not (problem["type"] == "too_short" and len(problem["input"]) >= problem["ctx"]["min_length"]):
                key = ".".join(_without_tags(kind, [str(part) for part in problem["loc"]]))
                problems.setdefault(key, f"{origin}: {_explain(kind, problem)}")
        raise ConfigError("; ".join(problems.values())) from error


def files_of(config: Config) -> list[Path]:
    """All paths in a configuration, wherever they stand."""

    def paths(value: Any) -> list[Path]:
        if isinstance(value, Path):
            return [value]
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
        return [path for each in inner for path in paths(each)]

    return paths(config.model_dump())


def dump_config(config: Config) -> str:
    """The full effective configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _AmbiguousError(yaml.YAMLError):
    """YAML that a reader and YAML 1.1 understand differently."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as everybody but YAML 1.1 does, and refuses what is ambiguous.

    That is a key given twice, of which YAML 1.1 drops the first, and numbers in base 8 (010) or 60 (1:30).
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, each key once."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise _AmbiguousError(f"key {key.value!r} is given twice, in lines {lines[name]} and {line}")
            lines[name] = line
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Compose a scalar; a number must look like what it is."""
        node = super().compose_scalar_node(anchor)
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and node.style is None and (base := _base(node.value)):
            raise _AmbiguousError(
                f"line {node.start_mark.line + 1}: {node.value} is a number in base {base} in YAML 1.1; "
                "a decimal number or quotes expected"
            )
        return node


_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""Errors of the loader, including those for values that only look like a date or a number."""

_HASH = "\ue023"
"""Private character that stands for # while an override is parsed, so that it begins no comment."""

_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _base(number: str) -> int | None:
    """Base 8 or 60 of a number of YAML 1.1, else None."""
    if ":" in number:
        return 60
    return 8 if re.fullmatch(r"[-+]?0[0-7_]+", number) else None


def _with_hash(value: Any) -> Any:
    """A parsed value with # put back."""
    if isinstance(value, dict):
        return {_with_hash(key): _with_hash(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_hash(inner) for inner in value]
    return value.replace(_HASH, "#") if isinstance(value, str) else value


def _assign(content: dict[str, Any], keys: list[str], value: Any, origin: str) -> None:
    for key in keys[:-1]:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{origin}: {key!r} is a value, not a section")
        content = inner
    content[keys[-1]] = value


def _explain(kind: type[Config], problem: Any) -> str:
    """Describe a pydantic error in one line: key, value found, what is allowed."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(_without_tags(kind, location))
    if problem["type"] == "extra_forbidden":
        names = _keys_at(kind, location[:-1])
        hint = nearest(location[-1], names)
        return f"unknown key {key!r}{hint} (allowed: {', '.join(names)})"
    message = problem["msg"].removeprefix("Value error, ")
    if not key or isinstance(problem["input"], dict):
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, found {problem['input']!r}"


def _keys_at(kind: type[Config], location: list[str]) -> list[str]:
    """Valid keys of the section at a location, which may pass through a tagged union."""
    classes: list[type[Config]] = [kind]
    for part in location:
        classes = _inside(classes, part)[0]
    return sorted({name for cls in classes for name in cls.model_fields})


def _without_tags(kind: type[Config], location: list[str]) -> list[str]:
    """A location without the tags of unions, which are no keys of the file."""
    classes: list[type[Config]] = [kind]
    keys = []
    for part in location:
        classes, is_tag = _inside(classes, part)
        if not is_tag and not _ALTERNATIVE.fullmatch(part):
            keys.append(part)
    return keys


_ALTERNATIVE = re.compile(r"(constrained|function)-\w+(\[.*)?|(tuple|list|dict|nullable)\[.*")
"""What pydantic calls one of the alternatives of a value."""


def _inside(classes: list[type[Config]], part: str) -> tuple[list[type[Config]], bool]:
    """Classes of the section that a part of a location leads to, and True if it is the tag of a union."""
    fields = [cls.model_fields[part] for cls in classes if part in cls.model_fields]
    inner = [found for field in fields for found in _config_classes(field.annotation)]
    tagged = [
        cls
        for cls in classes
        for key in ("kind", "task")
        if key in cls.model_fields and cls.model_fields[key].default == part
    ]
    if tagged and not fields:
        return tagged, True
    # A part that no class knows is a key of a dictionary of them.
    return inner or classes, False


def _config_classes(annotation: Any) -> list[type[Config]]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated, dict):
        return [cls for argument in typing.get_args(annotation) for cls in _config_classes(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, Config) else []
