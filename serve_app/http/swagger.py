"""`GET /swagger.json`, the document of AzureML's inference server: Swagger 2.0, or OpenAPI 3.0 with `?version=3`.

    ScoreBody, ImageAnswer, ErrorAnswer (pydantic) ─▶ JSON Schema ─▶ subset of 2.0 or 3.0 ─▶ ServiceInput, ServiceOutput, ErrorResponse

Clients generated from AzureML's document use these names and the operation `RunMLService`. `/openapi.json` is complete (OpenAPI 3.1).
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pipeline.errors import RequestError, quoted
from serve_app.http.contract import ScoreBody
from serve_app.http.openapi import SCORE_EXAMPLE, ErrorAnswer, ImageAnswer

Document = dict[str, Any]

NAMES = {"ScoreBody": "ServiceInput", "ErrorAnswer": "ErrorResponse"}
"""Our models and AzureML's names for them."""
DROPPED_KEYS = ("anyOf", "default", "examples", "title")
"""Keys that Swagger 2.0 does not have, and `title`, which only repeats the name."""


def swagger_document(version: str, service_version: str) -> Document:
    """The document of one Swagger version.

    Args:
        version: of the specification, "2" or "3".
        service_version: for `info`.
    Raises:
        RequestError: 404, another version.
    """
    if version not in ("2", "3"):
        raise RequestError(
            f"/swagger.json supports version=2 (the default) and version=3, not {quoted([version])}; OpenAPI 3.1 is at /openapi.json.",
            code="not_found",
            status=404,
        )
    info = {"title": "RTMDet-Ins scoring service", "description": "Instance segmentation.", "version": service_version}
    return _swagger_2(info) if version == "2" else _openapi_3(info)


def _swagger_2(info: Document) -> Document:
    def answer(description: str, schema: Document) -> Document:
        return {"description": description, "schema": schema}

    ref = "#/definitions/"
    body = {"name": "serviceInputPayload", "in": "body", "required": True, "schema": {"$ref": f"{ref}ServiceInput"}}
    failed = answer("The request failed; see the message.", {"$ref": f"{ref}ErrorResponse"})
    health = {"200": answer("The service answers.", {"type": "string"}), "default": failed}
    scored = answer("One object for each image, in order.", {"$ref": f"{ref}ServiceOutput"})
    return {
        "swagger": "2.0",
        "info": info,
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "securityDefinitions": {
            "Bearer": {
                "type": "apiKey",
                "name": "Authorization",
                "in": "header",
                "description": "The word Bearer, a space, the key",
            }
        },
        "paths": {
            "/": {"get": _health_check({"produces": ["text/plain"], "responses": health})},
            "/score": {"post": _score({"parameters": [body], "responses": {"200": scored, "default": failed}})},
        },
        "definitions": _definitions(ref, nullable="x-nullable"),
    }


def _openapi_3(info: Document) -> Document:
    def content(schema: Document, kind: str = "application/json", **more: Any) -> Document:
        return {"content": {kind: {"schema": schema} | more}}

    ref = "#/components/schemas/"
    body = {"required": True} | content({"$ref": f"{ref}ServiceInput"}, example=SCORE_EXAMPLE)
    failed = {"description": "The request failed; see the message."} | content({"$ref": f"{ref}ErrorResponse"})
    health = {"200": {"description": "The service answers."} | content({"type": "string"}, "text/plain"), "default": failed}
    scored = {"description": "One object for each image, in order."} | content({"$ref": f"{ref}ServiceOutput"})
    return {
        "openapi": "3.0.3",
        "info": info,
        "paths": {
            "/": {"get": _health_check({"responses": health})},
            "/score": {"post": _score({"requestBody": body, "responses": {"200": scored, "default": failed}})},
        },
        "components": {
            "schemas": _definitions(ref, nullable="nullable"),
            "securitySchemes": {"Bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _health_check(operation: Document) -> Document:
    return {"operationId": "ServiceHealthCheck", "tags": ["health"], "summary": "This process answers."} | operation


def _score(operation: Document) -> Document:
    """The operation, with the key optional: the service may have no keys."""
    named = {"operationId": "RunMLService", "tags": ["score"], "summary": "Segment images."}
    return named | {"security": [{"Bearer": []}, {}]} | operation


def _definitions(ref: str, nullable: str) -> Document:
    """The schemas of the request and the responses, under AzureML's names where it has one."""
    models: list[type[BaseModel]] = [ScoreBody, ImageAnswer, ErrorAnswer]
    _, document = models_json_schema([(model, "validation") for model in models], ref_template="{model}")
    lowered = {NAMES.get(name, name): _lowered(schema, ref, nullable) for name, schema in document["$defs"].items()}
    lowered["ServiceInput"]["example"] = SCORE_EXAMPLE
    return lowered | {"ServiceOutput": {"type": "array", "items": {"$ref": f"{ref}ImageAnswer"}}}


def _lowered(schema: Document, ref: str, nullable: str) -> Document:
    """Rewrite a JSON Schema for Swagger 2.0 and OpenAPI 3.0, which have no null type and here get one type instead of `anyOf`."""
    choices = schema.get("anyOf", [])
    kinds = [choice for choice in choices if choice.get("type") != "null"]
    out = {key: value for key, value in schema.items() if key not in DROPPED_KEYS}
    if len(kinds) == 1:
        out = kinds[0] | out
    elif kinds and all(kind.get("type") == "array" for kind in kinds):
        out |= {"type": "array", "items": {}}
    if "$ref" in out:  # nothing may stand beside it
        return {"$ref": ref + NAMES.get(out["$ref"], out["$ref"])}
    if len(kinds) < len(choices):
        out[nullable] = True
    if "properties" in out:
        out["properties"] = {name: _lowered(inner, ref, nullable) for name, inner in out["properties"].items()}
    if "items" in out:
        out["items"] = _lowered(out["items"], ref, nullable)
    return out
