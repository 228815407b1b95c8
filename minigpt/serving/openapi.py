"""The description of the API that /openapi.json serves, made from the models that check the requests."""

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

SUMMARIES = {
    "/generate": "Generate text",
    "/v1/completions": "OpenAI's completions",
    "/v1/chat/completions": "OpenAI's chat completions",
    "/v1/embeddings": "OpenAI's embeddings",
    "/tokenize": "Token ids of a text or a chat, in vLLM's form",
    "/detokenize": "Text of token ids, in vLLM's form",
    "/classify": "Label of a text or a pair of texts, with all labels' probabilities",
    "/tag": "Tags of a text's characters, and the entities that they mark",
}
OPENAI_ANSWER_TYPES = ["application/json", "text/event-stream"]
ANSWER_TYPES = {
    "/generate": ["text/plain", "application/json"],
    "/v1/completions": OPENAI_ANSWER_TYPES,
    "/v1/chat/completions": OPENAI_ANSWER_TYPES,
}
PAGES = {
    "/": ("A page that shows what is running", "text/html"),
    "/health": ("Whether the server is running, and how many requests run and wait", "application/json"),
    "/metrics": ("Metrics for Prometheus", "text/plain"),
    "/openapi.json": ("This description", "application/json"),
    "/tokenizer_info": ("The tokenizer's special tokens and chat template, in vLLM's form", "application/json"),
    "/v1/models": ("The models that are served", "application/json"),
    "/v1/models/{model}": ("One model", "application/json"),
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail


def describe_api(models, with_key):
    """The OpenAPI 3.1 description (dict). models: as from `request_models`; with_key: whether an API key is needed."""
    bodies = [(model, "validation") for model in [*models.values(), ErrorResponse]]
    references, definitions = models_json_schema(bodies, ref_template="#/components/schemas/{model}")

    def describe(summary, content_types, **more):
        error = {"application/json": {"schema": references[ErrorResponse, "validation"]}}
        failure = {"description": "what is wrong with the request or the server", "content": error}
        success = {"description": "OK", "content": {kind: {} for kind in content_types}}
        return {"summary": summary, "responses": {"200": success, "4XX": failure, "5XX": failure}, **more}

    paths = {path: {"get": describe(summary, [kind])} for path, (summary, kind) in PAGES.items()}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{model}"]["parameters"] = [name]
    paths["/tokenizer_info"]["get"]["parameters"] = [{**name, "in": "query", "required": False}]
    for path, model in models.items():
        body = {"required": True, "content": {"application/json": {"schema": references[model, "validation"]}}}
        kinds = ANSWER_TYPES.get(path, ["application/json"])
        paths[path] = {"post": describe(SUMMARIES[path], kinds, requestBody=body)}
    components, security = {"schemas": definitions["$defs"]}, {}
    if with_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        security = {"security": [{"key": []}]}
    info = {"title": "MiniGPT", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components, **security}
