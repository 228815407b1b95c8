"""The Flask app: routes, who may use them, and errors in OpenAI's form."""

import hmac
import time
from dataclasses import dataclass

from flask import Flask, Response, render_template, request
from werkzeug.exceptions import HTTPException, SecurityError

from minigpt.serving.counters import Counters
from minigpt.serving.errors import ApiError, event, read_json, to_json
from minigpt.serving.fields import FieldLimits, checked_fields, messages_of, prompts_of, sampling_of, schemas
from minigpt.serving.openai_api import AnswerForm, model_entry, model_list
from minigpt.serving.openapi import description
from minigpt.serving.request import ClientGone, Places, Work

OPEN = ("/", "/health")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CLIENT_GONE = 499  # as nginx logs it; nobody receives it


@dataclass
class Service:
    """What requests share.

    models: name to generator; bodies: path to the schema of what is posted there; request_seconds: the most that a
    request may take.
    """

    models: dict
    bodies: dict
    places: Places
    counters: Counters
    limits: FieldLimits
    request_seconds: float


def create_app(models, settings, api_key=""):
    """The WSGI app that serves `models` (dict of name to TextGenerator, at least one) under the settings' limits.

    api_key: what `Authorization: Bearer` must bear; "": nothing. `app.service` is its Service.
    """
    app = Flask(__name__)
    app.url_map.strict_slashes, app.url_map.merge_slashes = False, False
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    if settings.host in LOOPBACK and not api_key:
        # Else a web page whose name is made to lead to this machine could ask as if it were the server's own.
        app.config["TRUSTED_HOSTS"] = ["localhost", "127.0.0.1", "[::1]", settings.host]
    limits = FieldLimits(settings.max_prompt_chars, settings.max_tokens_limit, settings.max_batch)
    places = Places(models, settings.max_batch, settings.max_queue)
    app.service = Service(models, schemas(limits), places, Counters(models), limits, settings.request_seconds)
    app.before_request(lambda: check_key(api_key))
    app.after_request(lambda response: finished(app.service, response, settings.cors))
    app.register_error_handler(Exception, lambda error: failed(app, error))
    add_pages(app, bool(api_key))
    add_generation(app)
    return app


def add_pages(app, with_key):
    """The routes that are read: the page, health, counters, models, the API's description."""
    service, created = app.service, int(time.time())

    @app.get("/")
    def page():
        generators = service.models.items()
        models = [(name, g.stage, g.model.config.block_size) for name, g in generators]
        return render_template("index.html", models=models, base=request.host_url.rstrip("/"), with_key=with_key)

    @app.get("/health")
    def health():
        running = sum(generator.running for generator in service.models.values())
        waiting = sum(generator.waiting for generator in service.models.values())
        status = "stopping" if service.places.stopping else "ok"
        return answer({"status": status, "models": list(service.models), "running": running, "waiting": waiting})

    @app.get("/metrics")
    def metrics():
        text, kind = service.counters.text()
        return Response(text, content_type=kind)

    @app.get("/openapi.json")
    def openapi():
        return answer(description(service.bodies, with_key))

    @app.get("/v1/models")
    def models():
        return answer(model_list(service.models, created))

    @app.get("/v1/models/<path:name>")
    def model(name):
        return answer(model_entry(known_model(service, name), created))


def add_generation(app):
    """The routes that generate."""
    service = app.service

    @app.post("/generate")
    def generate():
        schema = service.bodies["/generate"]
        values = checked_fields(body(), schema)
        work = start(service, values, schema, lambda generator: [values["prompt"]])
        if values.get("stream", True):
            return stream(service, work, plain_text(work), "text/plain; charset=utf-8")
        return answer_of(work, lambda: generated(work))

    @app.post("/v1/completions")
    def completions():
        schema = service.bodies["/v1/completions"]
        values = checked_fields(body(), schema)
        n_vocab = service.models[known_model(service, values["model"])].tokenizer.n_vocab
        prompts = prompts_of(values, service.limits, n_vocab)
        return openai_answer(service, values, schema, lambda generator: prompts, chat=False)

    @app.post("/v1/chat/completions")
    def chat():
        schema = service.bodies["/v1/chat/completions"]
        values = checked_fields(body(), schema)
        messages = messages_of(values, service.limits)
        return openai_answer(service, values, schema, lambda generator: [generator.prompt_ids(messages)], chat=True)


def openai_answer(service, values, schema, prompts, chat):
    """The response, as OpenAI writes it, to checked fields. prompts(generator): list of prompts."""
    work = start(service, values, schema, prompts)
    form = AnswerForm(values["model"], chat)
    if values.get("stream"):
        include_usage = values.get("stream_options", {}).get("include_usage", False)
        return stream(service, work, form.events(work, include_usage), "text/event-stream; charset=utf-8")
    return answer_of(work, lambda: form.whole(work))


def known_model(service, name):
    """A model's name. Raises ApiError (404) for one that is not served."""
    if name not in service.models:
        raise ApiError(
            404, f"there is no model {name[:64]}; served: {', '.join(service.models)}", "model", "model_not_found"
        )
    return name


def body():
    """The request's body as a dict. Raises ApiError where its type is not JSON in UTF-8, or it is none."""
    if request.mimetype != "application/json":
        shown = request.mimetype[:64] or "missing"
        raise ApiError(
            415, f"Content-Type is {shown}; send -H 'Content-Type: application/json'", "Content-Type", "not_json"
        )
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8"):
        raise ApiError(415, f"Content-Type has charset {charset[:64]}; only UTF-8 is read", "Content-Type", "not_utf8")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError(415, "Content-Encoding is not supported; send the body as it is", "Content-Encoding")
    return read_json(request.get_data(cache=False))


def start(service, values, schema, prompts):
    """The Work of checked fields, its first piece there. prompts(generator): list of prompts."""
    model = known_model(service, values.get("model", next(iter(service.models))))
    params = sampling_of(values, schema["properties"])
    gone = request.environ.get("waitress.client_disconnected", lambda: False)
    work = Work(service, model, prompts(service.models[model]), params, gone)
    try:
        work.wait_for_first()
    except BaseException:
        work.close()
        raise
    return work


def answer(values, status=200, headers=None):
    """A JSON response."""
    return Response(to_json(values), status, {"Content-Type": "application/json", **(headers or {})})


def answer_of(work, make):
    """The JSON response of make(), which waits for the end of `work`."""
    try:
        return answer(make(), headers=cut_header(work))
    finally:
        work.close()


def cut_header(work):
    """The header that says that a prompt was longer than the model's block."""
    return {"X-Prompt-Cut": "true"} if work.prompt_cut else {}


def stream(service, work, chunks, content_type):
    """A response of chunks of bytes as they come; `work` is closed with it, also where it is never begun."""
    route = str(request.url_rule)
    is_events = content_type.startswith("text/event-stream")

    def sent():
        try:
            yield from chunks
        except ClientGone:
            return
        except RuntimeError:  # the engine: the status has been sent, so the stream says it, or breaks off
            service.counters.broke_off(route)
            if not is_events:
                raise
            yield event(ApiError(500, "generation failed", None, "failed", "server_error").body)
        finally:
            work.close()

    headers = {"Content-Type": content_type, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = Response(sent(), headers={**headers, **cut_header(work)})
    response.call_on_close(work.close)  # the generator's own end is not reached where it was not begun
    return response


def plain_text(work):
    """Yields the text of a work of one prompt, in UTF-8."""
    for turn in work.turns():
        text = "".join(text for _, text, _ in turn)
        if text:
            yield text.encode()


def generated(work):
    """The dict that /generate answers where it does not stream."""
    texts, reasons = work.texts()
    return {
        "text": texts[0],
        "finish_reason": reasons[0],
        "prompt_tokens": work.prompt_tokens,
        "completion_tokens": work.completion_tokens,
        "prompt_cut": work.prompt_cut,
        "seconds": round(time.monotonic() - work.started, 4),
    }


def check_key(api_key):
    """Raises ApiError (401) where a key is wanted and the request does not bear it."""
    if not api_key or request.path in OPEN or request.method == "OPTIONS":
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # A header's bytes arrive as latin-1.
    right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), api_key.encode())
    if scheme.lower() != "bearer" or not right:
        raise ApiError(
            401,
            "the API key is missing or wrong; send it as Authorization: Bearer KEY",
            "Authorization",
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def finished(service, response, cors):
    """Count a response, and let the pages of the origins in `cors` read it."""
    service.counters.answered(str(request.url_rule or "other"), response.status_code)
    origin = request.headers.get("Origin")
    if cors:
        response.vary.add("Origin")
    if origin and (origin in cors or "*" in cors):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = "Retry-After, X-Prompt-Cut"
        if request.method == "OPTIONS":
            response.headers["Access-Control-Allow-Methods"] = "GET, POST"
            asked = request.headers.get("Access-Control-Request-Headers", "")
            response.headers["Access-Control-Allow-Headers"] = asked or "Authorization, Content-Type"
            response.headers["Access-Control-Max-Age"] = "600"
    return response


def failed(app, error):
    """The response to whatever was raised."""
    if isinstance(error, HTTPException):
        if error.code is None or error.code < 400:
            return error
        headers = {key: value for key, value in error.get_headers() if key in ("Allow", "Retry-After")}
        what = {
            404: f"there is nothing at {request.path[:64]}",
            405: f"{request.method} is not what {request.path[:64]} is asked with; {headers.get('Allow')} are",
            413: f"the body is longer than {app.config['MAX_CONTENT_LENGTH']} bytes",
        }.get(error.code, error.description)
        param = {404: "path", 405: "method", 413: "body"}.get(error.code, "HTTP")
        if isinstance(error, SecurityError):
            what, param = f"Host is {request.headers.get('Host', '')[:64]}; use 127.0.0.1, or set a key", "Host"
        error = ApiError(error.code, what, param, headers=headers)
    elif isinstance(error, ClientGone):
        return Response(status=CLIENT_GONE)
    elif not isinstance(error, ApiError):
        app.logger.error("%s %s failed", request.method, request.path, exc_info=error)
        error = ApiError(500, "the server failed; its console has the reason", None, "failed", "server_error")
    return answer(error.body, error.status, error.headers)
