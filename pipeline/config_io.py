"""YAML to `RunConfig` and back: `extends`, overrides, files named inside, and messages that help.

Order of precedence: defaults < `extends:` file < file < `key.path=value`. OmegaConf merges, pydantic
checks once. The environment never sets a configuration: `${oc.env:X}` would write secrets into the
resolved file, so resolvers are refused.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ValidationError

from pipeline.config import RunConfig
from pipeline.config.secrets import settings_with_credentials
from pipeline.errors import ConfigError

_OVERRIDE_KEY = re.compile(r"^[A-Za-z_][\w-]*(\.[A-Za-z_0-9][\w-]*)*$")

# Settings that may name a YAML file beside the configuration; the file's content takes their place.
_FILES = ("transfer.protocol", "pretrain.engine.deepspeed")


class _StrictLoader(yaml.SafeLoader):
    """YAML without its traps: a key that stands twice is an error, and `1e-3` is a number."""


def _strict_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", node.start_mark
            )
    return {
        key: loader.construct_object(value, deep=True)
        for key, (_, value) in zip(keys, node.value, strict=True)
    }


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _strict_mapping)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # PyYAML follows YAML 1.1, where 1e-3 is a string.
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in `path`, with `key.path=value` overrides, checked.

    Raises:
        ConfigError: a file that is missing or not YAML, an unknown key (the nearest known one is
            named), a value out of its range.
    """
    merged = OmegaConf.create({})
    for layer in _layers(path, overrides):
        for key in _FILES:
            # A file that is named takes the place of all that stood there before.
            if _inline_file(layer, key, path.parent):
                OmegaConf.update(merged, key, None, force_add=True)
        combined = OmegaConf.merge(merged, layer)
        assert isinstance(combined, DictConfig)
        merged = combined
    plain = OmegaConf.to_container(merged, resolve=True)
    assert isinstance(plain, dict)
    settings = {str(key): value for key, value in plain.items()}
    return parse_config(settings, str(path))


def parse_config(plain: Mapping[str, Any], where: str) -> RunConfig:
    """Check `plain`; `where` names its source in messages."""
    # Before all other checks, whose messages show the values that they refuse.
    if named := list(settings_with_credentials(plain)):
        raise ConfigError(
            f"{where}: credentials in the URL of {', '.join(named)}",
            "none: the resolved configuration is stored, sent to MLflow and shown in the report",
            "give them in the environment or in the tool's own file: AWS_…, ~/.aws, MLFLOW_TRACKING_…",
        )
    try:
        return RunConfig.model_validate(plain)
    except ValidationError as error:
        raise _explain(error, plain, where) from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; loading it gives an equal `RunConfig`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def digest_of(value: object) -> str:
    """First 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf) of a nested mapping, in its order."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


# ---------------------------------------------------------------- files and overrides


def _layers(path: Path, overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What is merged, later over earlier: the base, the file, each override."""
    own = read_yaml(path)
    base_name = own.pop("extends", None)
    if base_name is not None:
        base = read_yaml(path.parent / str(base_name))
        if "extends" in base:
            raise ConfigError(
                f"{base_name} itself extends {base['extends']}",
                "one level of extends",
                f"let {path} extend {base['extends']}, or copy the settings over",
            )
        yield base
    yield own
    for override in overrides:
        yield _parse_override(override)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, read strictly: no key twice, no interpolation. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}",
            "a YAML file",
            "check the path, or start from configs/demo.yaml",
        ) from None
    if "${" in text:
        raise ConfigError(
            f"{path} holds an interpolation '${{'",
            "plain values: what an interpolation reads would be written into the resolved configuration",
            "write the value itself",
        )
    try:
        value = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path} is not YAML: {error}", "a YAML mapping", "correct the place named"
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} holds a {type(value).__name__}", "a YAML mapping of settings", "see configs/demo.yaml"
        )
    return value


def _parse_override(text: str) -> dict[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not _OVERRIDE_KEY.match(key):
        raise ConfigError(
            f"the override {text!r}",
            "key.path=value, as in pretrain.batch=256",
            "write the full dotted name and '='",
        )
    try:
        nested = yaml.load(value, _StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the override {text!r}: {error}", "a YAML value after '='", "quote the value"
        ) from None
    for name in reversed(key.split(".")):
        nested = {name: nested}
    assert isinstance(nested, dict)
    return nested


def _inline_file(layer: dict[str, Any], key: str, directory: Path) -> bool:
    """Replace a file's name at `key` of `layer` by the file's content; whether there was one."""
    *parents, last = key.split(".")
    node: Any = layer
    for name in parents:
        node = node.get(name) if isinstance(node, dict) else None
    if not (isinstance(node, dict) and isinstance(node.get(last), str)):
        return False
    node[last] = read_yaml(directory / node[last])
    return True


# ---------------------------------------------------------------- messages


def _explain(error: ValidationError, plain: Mapping[str, Any], where: str) -> ConfigError:
    """One message for all that is wrong: a line each, at most five."""
    lines = []
    for item in error.errors()[:5]:
        # Tags of unions are no names of the file.
        place = [part for i, part in enumerate(item["loc"]) if not _is_tag(item["loc"], i, plain)]
        dotted = ".".join(str(part) for part in place) or "(top)"
        if item["type"] == "extra_forbidden":
            known = _known_names(place[:-1], plain)
            near = difflib.get_close_matches(str(place[-1]), known, n=3, cutoff=0.4)
            hint = f"; nearest: {', '.join(near)}" if near else f"; known: {', '.join(sorted(known))}"
            lines.append(f"unknown key {dotted}{hint}")
        elif item["type"] == "missing":
            lines.append(f"{dotted} is missing")
        elif item["type"] == "union_tag_invalid":
            mark = "kind" if item["loc"][0] == "transfer" else "source"
            lines.append(f"{dotted}.{mark} is {item['ctx']['tag']!r}; known: {item['ctx']['expected_tags']}")
        else:
            # Where the name of a variable is asked for, somebody may have typed what it should hold.
            shown = "not shown" if dotted.endswith("_env") else repr(item["input"])
            lines.append(f"{dotted} is {shown}: {item['msg'].removeprefix('Value error, ')}")
    more = error.error_count() - len(lines)
    if more > 0:
        lines.append(f"and {more} more")
    return ConfigError(
        f"{where}: " + "\n       ".join(lines),
        "settings with the names, types and ranges of `vitline config schema`",
        "correct these, or take them out to get the defaults",
    )


def _is_tag(loc: tuple[int | str, ...], index: int, plain: Mapping[str, Any]) -> bool:
    """Whether loc[index] is pydantic's name for a union's member rather than a key of the file."""
    return index == 2 and (loc[0] == "datasets" or loc[:2] == ("transfer", "protocol"))


def _known_names(place: Sequence[int | str], plain: Mapping[str, Any]) -> list[str]:
    """Names that may stand at `place` of the configuration."""
    model: Any = RunConfig
    node: Any = plain
    for part in place:
        node = node.get(part) if isinstance(node, Mapping) else None
        model = _child_model(model, str(part), node)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _child_model(model: Any, name: str, node: Any) -> Any:
    if isinstance(model, type) and issubclass(model, BaseModel):
        field = model.model_fields.get(name)
        model = field.annotation if field else None
        if get_origin(model) is dict:
            return model  # the next name is a key of it
    members = list(_models_in(model))
    return next((m for m in members if len(members) == 1 or _accepts(m, node)), None)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _accepts(model: type[BaseModel], node: Any) -> bool:
    """Whether `node` says of itself that it is one of these: by `source` (datasets) or `kind` (protocols)."""
    mark = "source" if "source" in model.model_fields else "kind"
    field = model.model_fields.get(mark)
    if field is None:
        return False
    value = node.get(mark, field.default) if isinstance(node, Mapping) else None
    names = get_args(field.annotation)
    return value in names if names else isinstance(value, str) and value.startswith("torchvision:")
