"""The Flask app: routes, access checks, and errors in OpenAI's form."""

import hmac
import time
from dataclasses import dataclass
from urllib.parse import quote

from flask import Flask, Response, g, render_template, request
from werkzeug.exceptions import HTTPException

from minigpt.common.net import LOCAL_HOST_NAMES, LOOPBACK_HOSTS, host_name
from minigpt.serving.counters import Counters
from minigpt.serving.errors import ApiError, blamed_on, read_json, to_event, to_json
from minigpt.serving.labelling import (
    GENERATE,
    classified_answer,
    label_texts,
    labelling_examples,
    pick_model,
    tagged_answer,
)
from minigpt.serving.openai_api import OpenAIAnswer, list_models, model_entry
from minigpt.serving.openapi import describe_api
from minigpt.serving.request import Admission, ClientGone, RunningRequest
from minigpt.serving.schemas import parse_request, request_models
from minigpt.serving.text_tools import EMBEDDING, describe_tokenizer, embed, tokenize

PATHS_WITHOUT_KEY = ("/", "/health")
MAX_NAMED_FIELDS = 20  # in the header X-Ignored-Fields
STATUS_CLIENT_GONE = 499  # nginx's status for its log; no client receives it


@dataclass
class Service:
    """What all requests share.

    models: dict of name to generator; bodies: dict of path to the class of the request body that is posted there;
    strict: refuse bodies with unknown fields; request_seconds: time limit of one request.
    """

    models: dict
    bodies: dict
    strict: bool
    admission: Admission
    counters: Counters
    request_seconds: float

    @property
    def running(self):
        """Number of streams that the models run, all together."""
        return sum(generator.running for generator in self.models.values())


def create_app(models, settings, api_key=""):
    """The WSGI app that serves `models` (dict of name to TextGenerator, at least one) under the settings' limits.

    api_key: the key that requests must send as `Authorization: Bearer KEY`; "" if none is needed. `app.service` is the
    app's Service.
    """
    app = Flask(__name__)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    if settings.host in LOOPBACK_HOSTS and not api_key:
        # Against DNS rebinding: a web page whose name resolves to 127.0.0.1 could otherwise read the answers.
        app.before_request(check_host)
    bodies = request_models(settings)
    admission = Admission(models, settings.max_batch, settings.max_queue)
    app.service = Service(models, bodies, settings.strict, admission, Counters(models), settings.request_seconds)
    app.before_request(lambda: check_key(api_key))
    app.after_request(lambda response: count_and_allow(app.service, response, settings.cors))
    app.after_request(name_ignored_fields)
    app.register_error_handler(Exception, lambda error: error_response(app, error))
    add_pages(app, bool(api_key))
    add_generation(app)
    add_text_tools(app)
    add_labelling(app)
    return app


def add_pages(app, with_key):
    """Add the routes that do not generate: page, health, metrics, models, description of the API."""
    service = app.service
    created = int(time.time())

    @app.get("/")
    def page():
        generators = service.models.items()
        models = [(name, each.stage, each.block_size) for name, each in generators]
        labelling = labelling_examples(service.models)
        base = request.host_url.rstrip("/")
        return render_template("index.html", models=models, labelling=labelling, base=base, with_key=with_key)

    @app.get("/health")
    def health():
        waiting = sum(generator.waiting for generator in service.models.values())
        status = "stopping" if service.admission.stopping else "ok"
        names, running = list(service.models), service.running
        return json_response({"status": status, "models": names, "running": running, "waiting": waiting})

    @app.get("/metrics")
    def metrics():
        text, content_type = service.counters.text()
        return Response(text, content_type=content_type)

    @app.get("/openapi.json")
    def openapi():
        return json_response(describe_api(service.bodies, with_key))

    @app.get("/v1/models")
    def models():
        return json_response(list_models(service.models, created))

    @app.get("/v1/models/<path:name>")
    def model(name):
        return json_response(model_entry(check_model(service, name), service.models[name], created))


def add_generation(app):
    """Add the routes that generate text."""
    service = app.service

    @app.post("/generate")
    def generate():
        body = read_body(service)
        model = pick_model(service.models, body.model and check_model(service, body.model), GENERATE)
        running = start_request(service, model, [body.prompt], [body.sampling_params])
        if body.stream:
            return stream_response(service, running, text_chunks(running), "text/plain; charset=utf-8")
        return whole_response(running, lambda: wait_for_text(running))

    @app.post("/v1/completions")
    def completions():
        body = read_body(service)
        model = pick_model(service.models, check_model(service, body.model), GENERATE)
        return openai_response(service, body, body.prompts(service.models[model].tokenizer.n_vocab), chat=False)

    @app.post("/v1/chat/completions")
    def chat():
        body = read_body(service)
        model = pick_model(service.models, check_model(service, body.model), GENERATE)
        with blamed_on("messages"):  # which a chat template of others may refuse
            ids = service.models[model].prompt_ids(body.conversation)
        return openai_response(service, body, [ids], chat=True)


def add_text_tools(app):
    """Add the routes for tokens and embeddings. Without a model's name they take the first model."""
    service = app.service

    def generator_of(name):
        return service.models[check_model(service, name or next(iter(service.models)))]

    @app.get("/tokenizer_info")
    def tokenizer_info():
        return json_response(describe_tokenizer(generator_of(request.args.get("model"))))

    @app.post("/tokenize")
    def tokens():
        body = read_body(service)
        return json_response(tokenize(generator_of(body.model), body))

    @app.post("/detokenize")
    def detokenize():
        body = read_body(service)
        tokenizer = generator_of(body.model).tokenizer
        return json_response({"prompt": tokenizer.decode(body.known_tokens(tokenizer.n_vocab))})

    @app.post("/v1/embeddings")
    def embeddings():
        body = read_body(service)
        model = pick_model(service.models, check_model(service, body.model), GENERATE)

        def start(prompts):
            return start_request(service, model, prompts, [EMBEDDING])

        return json_response(embed(service.models[model], body, start, service.admission.max_batch))


def add_labelling(app):
    """Add the routes of models with a task's head."""
    service = app.service

    def respond(kind, write):
        body = read_body(service)
        kind = "pair" if isinstance(body.inputs[0], tuple) else kind
        model = pick_model(service.models, body.model and check_model(service, body.model), kind)
        found = label_texts(service, model, body.inputs, client_gone())
        answers = [{"model": model, **write(each)} for each in found]
        headers = {"X-Prompt-Cut": "true"} if any(each.cut for each in found) else {}
        return json_response(answers[0] if body.texts is None else answers, headers=headers)

    @app.post("/classify")
    def classify():
        return respond("classify", classified_answer)

    @app.post("/tag")
    def tag():
        return respond("tag", tagged_answer)


def openai_response(service, body, prompts, chat):
    """The response, in OpenAI's form, to a completion or chat completion request."""
    with blamed_on("prompt"):
        running = start_request(service, body.model, prompts, body.choices_params)
    echo = not chat and bool(body.echo)
    answer = OpenAIAnswer(body.model, chat, service.models[body.model].tokenizer, echo)
    if body.stream:
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = answer.events(running, include_usage)
        return stream_response(service, running, events, "text/event-stream; charset=utf-8")
    return whole_response(running, lambda: answer.wait_for_whole(running))


def check_model(service, name):
    """`name`, if such a model is served. Raises ApiError (404) otherwise."""
    if name not in service.models:
        message = f"there is no model {name[:64]}; served: {', '.join(service.models)}"
        raise ApiError(404, message, "model", "model_not_found")
    return name


def read_body(service):
    """The request's body, parsed and checked.

    Raises ApiError: 415 if its type is not JSON in UTF-8, 400 if it cannot be parsed or a field is wrong.
    """
    if request.mimetype != "application/json":
        message = f"{request.mimetype[:64] or 'missing'}; send -H 'Content-Type: application/json'"
        raise ApiError(415, message, "Content-Type", "not_json")
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8"):
        raise ApiError(415, f"charset {charset[:64]}; only UTF-8 is read", "Content-Type", "not_utf8")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError(415, "not supported; send the body as it is", "Content-Encoding")
    model = service.bodies[str(request.url_rule)]
    body, g.ignored_fields = parse_request(model, read_json(request.get_data(cache=False)), service.strict)
    return body


def client_gone():
    """A function that says whether the client of the present request has disconnected."""
    return request.environ.get("waitress.client_disconnected", lambda: False)


def start_request(service, model, prompts, params):
    """A RunningRequest whose first text has been generated.

    prompts: list of text or ids; params: the SamplingParams of each choice.
    """
    running = RunningRequest(service, model, prompts, params, client_gone())
    try:
        running.wait_for_first()
    except BaseException:
        running.close()
        raise
    return running


def json_response(values, status=200, headers=None):
    return Response(to_json(values), status, {"Content-Type": "application/json", **(headers or {})})


def whole_response(running, wait_for_values):
    """The JSON response of wait_for_values(), which waits for the end of `running`."""
    try:
        return json_response(wait_for_values(), headers=prompt_cut_header(running))
    finally:
        running.close()


def prompt_cut_header(running):
    """The response header for a prompt that was longer than the model's block."""
    return {"X-Prompt-Cut": "true"} if running.prompt_cut else {}


def stream_response(service, running, chunks, content_type):
    """A response that sends `chunks` (bytes) as they come. Closing the response closes `running`."""
    route = str(request.url_rule)
    is_events = content_type.startswith("text/event-stream")

    def send():
        try:
            yield from chunks
        except ClientGone:
            return
        except (RuntimeError, ApiError):
            # The engine failed after the status was sent. Events can report the error; plain text can only break off.
            service.counters.stream_failed(route)
            if not is_events:
                raise
            yield to_event(ApiError(500, "generation failed", None, "failed", "server_error").body)
        finally:
            running.close()

    headers = {"Content-Type": content_type, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = Response(send(), headers={**headers, **prompt_cut_header(running)})
    response.call_on_close(running.close)  # a generator that was never started does not reach its `finally`
    return response


def text_chunks(running):
    """Yields the text of a request with one prompt, in UTF-8."""
    for update in running.updates():
        text = "".join(text for _, text, _ in update)
        if text:
            yield text.encode()


def wait_for_text(running):
    """The JSON answer (dict) of /generate; waits until `running` has ended."""
    texts, reasons = running.wait_for_texts()
    return {
        "text": texts[0],
        "finish_reason": reasons[0],
        "prompt_tokens": running.prompt_tokens,
        "completion_tokens": running.completion_tokens,
        "prompt_cut": running.prompt_cut,
        "seconds": round(time.monotonic() - running.started, 4),
    }


def check_host():
    """Raise ApiError (400) if the request's Host is not a name of this machine."""
    host = request.headers.get("Host", "")
    if host_name(host) not in LOCAL_HOST_NAMES:
        raise ApiError(400, f"{host[:64]} is not a name of this machine; use 127.0.0.1, or set a key", "Host")


def check_key(api_key):
    """Raise ApiError (401) if a key is needed and the request does not send it."""
    if not api_key or request.path in PATHS_WITHOUT_KEY or request.method == "OPTIONS":
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # WSGI decodes the bytes of a header as latin-1.
    is_right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), api_key.encode())
    if scheme.lower() != "bearer" or not is_right:
        message = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
        headers = {"WWW-Authenticate": "Bearer"}
        raise ApiError(401, message, "Authorization", "invalid_api_key", headers=headers)


def count_and_allow(service, response, cors):
    """Count a response, and add the CORS headers if the request's origin is in `cors`."""
    service.counters.response_started(str(request.url_rule or "other"), response.status_code)
    origin = request.headers.get("Origin")
    if cors:
        response.vary.add("Origin")
    if origin and (origin in cors or "*" in cors):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = "Retry-After, X-Prompt-Cut, X-Ignored-Fields"
        if request.method == "OPTIONS":
            response.headers["Access-Control-Allow-Methods"] = "GET, POST"
            wanted = request.headers.get("Access-Control-Request-Headers", "")
            response.headers["Access-Control-Allow-Headers"] = wanted or "Authorization, Content-Type"
            response.headers["Access-Control-Max-Age"] = "600"
    return response


def name_ignored_fields(response):
    """Add the header that names the fields of the body that were not known and had no effect."""
    names = [quote(name[:64], safe=".[]", errors="replace") for name in g.get("ignored_fields", ())]
    if names:
        more = ["..."] if len(names) > MAX_NAMED_FIELDS else []
        response.headers["X-Ignored-Fields"] = ", ".join(names[:MAX_NAMED_FIELDS] + more)
    return response


def error_response(app, error):
    """The response to any exception. Exceptions that are not a client's mistake are logged with their traceback."""
    if isinstance(error, HTTPException):
        if error.code is None or error.code < 400:
            return error
        error = from_http_exception(app, error)
    elif isinstance(error, ClientGone):
        return Response(status=STATUS_CLIENT_GONE)
    elif not isinstance(error, ApiError):
        app.logger.error("%s %s failed", request.method, request.path, exc_info=error)
        error = ApiError(500, "the server failed; its console has the reason", None, "failed", "server_error")
    return json_response(error.body, error.status, error.headers)


def from_http_exception(app, error):
    """The ApiError for one of Flask's own errors."""
    headers = {key: value for key, value in error.get_headers() if key in ("Allow", "Retry-After")}
    path = request.path[:64]
    message, param = {
        404: (f"there is nothing at {path}; {right_address(app, path)}", "path"),
        405: (f"{path} does not take {request.method}; it takes {headers.get('Allow')}", "method"),
        413: (f"the body is longer than {app.config['MAX_CONTENT_LENGTH']} bytes", "body"),
    }.get(error.code, (error.description, "HTTP"))
    return ApiError(error.code, message, param, headers=headers)


def right_address(app, path):
    """What to ask instead of a path that is not there, as an error says it."""
    base = "the base address of OpenAI's API ends in /v1"
    routes = [rule.rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/v1/") and not rule.arguments]
    for route in sorted(routes, key=len, reverse=True):
        if path.rstrip("/").endswith(route.removeprefix("/v1")):
            return f"use {route} ({base})"
    if path.startswith("/api/"):
        return f"Ollama's API is not served; use OpenAI's, such as /v1/chat/completions ({base})"
    if "responses" in path.split("/"):
        return f"OpenAI's Responses API is not served; use /v1/chat/completions ({base})"
    return f"try /v1/models or /v1/chat/completions ({base}; /openapi.json lists all paths)"
