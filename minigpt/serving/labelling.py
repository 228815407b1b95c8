"""The answers of /classify and /tag, and which of the served models is asked at which address."""

import time
from types import SimpleNamespace

from minigpt.serving.errors import ApiError
from minigpt.serving.request import ClientGone

# What a model does: "generate", or the kind of its task. With each, how it is asked.
GENERATE = "generate"
REQUESTS = {
    GENERATE: "POST /generate, /v1/completions or /v1/chat/completions",
    "classify": "POST /classify with text or texts",
    "pair": "POST /classify with text_a and text_b",
    "tag": "POST /tag with text or texts",
}


# What the server's page shows for the kinds of tasks.
EXAMPLES = {
    "classify": ("/classify", '{"text": "铁是一种金属。"}'),
    "pair": ("/classify", '{"text_a": "铁是一种金属。", "text_b": "铁是什么？"}'),
    "tag": ("/tag", '{"text": "黄河流经兰州。"}'),
}


def labelling_examples(models):
    """[(path, body)] of an example for each kind of task that a served model has."""
    return [EXAMPLES[kind] for kind in dict.fromkeys(map(kind_of, models.values())) if kind != GENERATE]


def kind_of(generator):
    """What a served model does: a key of REQUESTS."""
    return generator.kind if generator.stage == "task" else GENERATE


def pick_model(models, name, kind):
    """The name of a model that does what `kind`, a key of REQUESTS, says: `name`, or the first one if it is None.

    models: {name: generator}, `name` among them. Raises ApiError (400), which says how the models are asked.
    """
    kinds = {each: kind_of(generator) for each, generator in models.items()}
    if name is None:
        name = next((each for each in models if kinds[each] == kind), None)
    if name is None:
        others = "; ".join(f"{each}: {REQUESTS[of]}" for each, of in kinds.items())
        raise ApiError(400, f"no model here answers this request ({others})", "model", "wrong_kind_of_model")
    if kinds[name] != kind:
        message = f"{name[:64]} does not answer this request; ask it by {REQUESTS[kinds[name]]}"
        raise ApiError(400, message, "model", "wrong_kind_of_model")
    return name


def label_texts(service, model, inputs, client_gone):
    """[`Classified`] or [`Tagged`] of a list of texts, or of pairs of texts, by a served model.

    service: the app's Service; client_gone(): whether the client has disconnected. Raises ClientGone, and ApiError: 429
    or 503 where the request is not admitted, 503 where it takes longer than service.request_seconds.
    """
    classifier, started = service.models[model], time.monotonic()

    def go_on(_):
        if client_gone():
            raise ClientGone
        if time.monotonic() - started > service.request_seconds:
            raise ApiError(503, "not all texts were labelled in time", None, "too_slow", "server_error")

    # A request counts as one prompt. Of one with many texts, other requests take their turn between its batches.
    service.admission.admit(model, 1)
    read = SimpleNamespace(prompt_tokens=0, completion_tokens=0, finish_reason="cancelled")
    try:
        found = (classifier.tag if classifier.kind == "tag" else classifier.classify)(inputs, go_on)
        read.prompt_tokens, read.finish_reason = sum(each.tokens for each in found), "stop"
        return found
    finally:
        seconds = time.monotonic() - started
        service.admission.release(model, 1, seconds)
        service.counters.request_done(model, [read], seconds, 0.0)


def classified_answer(found):
    """The answer (dict) about a `Classified`."""
    return {"label": found.label, "probabilities": found.probabilities, "text_cut": found.cut}


def tagged_answer(found):
    """The answer (dict) about a `Tagged`."""
    return {"entities": found.entities, "tags": found.tags, "text_cut": found.cut}
