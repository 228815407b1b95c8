"""The description of the API that /openapi.json serves, made of the tables that requests are checked by."""

from minigpt.serving.fields import DEFAULTS

ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
ANSWERS = {"/generate": ["text/plain", "application/json"]}
OPENAI_ANSWERS = ["application/json", "text/event-stream"]
PAGES = {
    "/": ("A page that says what is running", "text/html"),
    "/health": ("Whether the server is well", "application/json"),
    "/metrics": ("Counters for Prometheus", "text/plain"),
    "/openapi.json": ("This description", "application/json"),
    "/v1/models": ("The models that are served", "application/json"),
}


def description(schemas, with_key):
    """The OpenAPI 3.1 dict of {path: schema of its body}; with_key: whether an API key is wanted."""
    paths = {path: {"post": posting(path, schema)} for path, schema in schemas.items()}
    paths |= {path: {"get": {"summary": help, "responses": replies([kind])}} for path, (help, kind) in PAGES.items()}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{model}"] = {
        "get": {"summary": "One model", "parameters": [name], "responses": replies(["application/json"])}
    }
    described = {"openapi": "3.1.0", "info": {"title": "MiniGPT", "version": "1"}, "paths": paths}
    if with_key:
        described["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        described["security"] = [{"key": []}]
    return described


def posting(path, schema):
    body = {"required": True, "content": {"application/json": {"schema": object_schema(schema)}}}
    summary = {"/generate": "Generate text"}.get(path, f"OpenAI's {path.removeprefix('/v1/')}")
    return {"summary": summary, "requestBody": body, "responses": replies(ANSWERS.get(path, OPENAI_ANSWERS))}


def replies(kinds):
    error = {"description": "what was wrong", "content": {"application/json": {"schema": ERROR}}}
    return {"200": {"description": "OK", "content": {kind: {} for kind in kinds}}, "4XX": error, "5XX": error}


def object_schema(schema):
    """An object's schema as OpenAPI writes it: with defaults, null where a field may be left out, and nothing else."""
    if "properties" not in schema:
        return plain(schema)
    properties = {}
    for name, field in schema["properties"].items():
        default = DEFAULTS.get(field.get("target", name))
        field = plain(field) | ({"default": default} if isinstance(default, (int, float)) else {})
        properties[name] = field if name in schema.get("required", ()) else or_null(field)
    return plain(schema) | {"properties": properties, "additionalProperties": False}


def plain(schema):
    """A schema without what is ours only."""
    schema = {key: value for key, value in schema.items() if key != "target" and value != ""}
    if "items" in schema:
        schema["items"] = object_schema(schema["items"])
    if "anyOf" in schema:
        schema["anyOf"] = [object_schema(choice) for choice in schema["anyOf"]]
    return schema


def or_null(schema):
    """A schema that null fits too."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}
