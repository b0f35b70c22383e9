"""Checks keys and types of a serve_config.yaml against the pydantic models of Ray Serve and of our settings."""

from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from deployments.settings import first_fault
from pipeline.errors import ConfigurationError

Model = TypeVar("Model", bound=BaseModel)


def check_keys(section: Any, model: type[BaseModel], location: str) -> None:
    """Refuse keys that `model`, or the model of an inner section, does not have; values are checked by `validated`.

    Args:
        section: parsed YAML.
        location: of the section in the file, for messages; empty at the top level.
    Raises:
        ConfigurationError: an unknown key, or a section that is not a mapping.
    """
    here = location or "top level"
    if not isinstance(section, dict):
        raise ConfigurationError(f"{here}: expected a mapping, got {section!r}")
    unknown = sorted(str(key) for key in section if key not in model.model_fields)
    if unknown:
        raise ConfigurationError(f"{here}: unknown key(s) {', '.join(unknown)}; known: {', '.join(sorted(model.model_fields))}")
    for key, value in section.items():
        inner = _model_in(model.model_fields[key].annotation)
        below = f"{location}.{key}".lstrip(".")
        if inner and isinstance(value, list):
            for index, item in enumerate(value):
                check_keys(item, inner, f"{below}[{item.get('name', index) if isinstance(item, dict) else index}]")
        elif inner and value is not None:
            check_keys(value, inner, below)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Optional[Union[Dict, AutoscalingConfig]]` or `List[DeploymentSchema]`."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((model for model in map(_model_in, get_args(annotation)) if model), None)


def validated(model: type[Model], section: Any, location: str) -> Model:
    """The section as a model.

    Raises:
        ConfigurationError: the first error, with its place.
    """
    try:
        return model.model_validate(section)
    except ValidationError as error:
        raise ConfigurationError(first_fault(error, section, location)) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{location or 'top level'}: a function that it names cannot be imported: {error}") from error
