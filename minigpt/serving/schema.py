"""The part of JSON Schema that the fields of a request are written in, and the check of a value by it.

What is understood: anyOf (of different types), enum, type, minimum, maximum, maxLength, minItems, maxItems, items,
properties, required. An object may have no other properties, except where it lists none.
"""

import difflib

from minigpt.serving.errors import ApiError

NAMES = {
    "number": "a number",
    "integer": "an integer",
    "string": "a string",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def type_of(value):
    """JSON's name of a parsed value's type; a number without a fraction is an integer."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) or value.is_integer() else "number"
    return {str: "string", list: "array", dict: "object"}[type(value)]


def fits(value, schema):
    """Whether a value's type is the schema's."""
    kind = type_of(value)
    if "enum" in schema:
        return any(kind == type_of(choice) for choice in schema["enum"])
    return schema["type"] in (kind, "number" if kind == "integer" else kind)


def shown(value):
    """A value as an error quotes it."""
    kind = type_of(value)
    return NAMES[kind] if kind in ("array", "object") else repr(value)[:40]


def check(value, schema, where):
    """`value`, with integers as int. Raises ApiError (400) that names the field, `where`, and says what it wants."""
    if "anyOf" in schema:
        choices = [choice for choice in schema["anyOf"] if fits(value, choice)]
        if not choices:
            wanted = " or ".join(NAMES[choice["type"]] for choice in schema["anyOf"])
            raise ApiError(400, f"{where} must be {wanted}, not {shown(value)}", where)
        return check(value, choices[0], where)
    if "enum" in schema:
        if not any(type_of(value) == type_of(choice) and value == choice for choice in schema["enum"]):
            choices = " or ".join(map(repr, schema["enum"]))
            raise ApiError(400, f"{where}: {schema.get('description', f'must be {choices}')}", where)
        return value
    if not fits(value, schema):
        raise ApiError(400, f"{where} must be {NAMES[schema['type']]}, not {shown(value)}", where)
    return CHECKS.get(schema["type"], lambda value, *_: value)(value, schema, where)


def check_number(value, schema, where):
    for name, beyond in (("minimum", value < schema["minimum"]), ("maximum", value > schema["maximum"])):
        if beyond:
            side = "least" if name == "minimum" else "most"
            raise ApiError(400, f"{where} is {shown(value)}; it must be at {side} {schema[name]}", where)
    return int(value) if schema["type"] == "integer" else float(value)


def check_string(value, schema, where):
    if len(value) > schema.get("maxLength", len(value)):
        raise ApiError(400, f"{where} has {len(value)} characters; {schema['maxLength']} are the most", where)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{where} has half of a surrogate pair, which is no character", where) from None
    return value


def check_array(value, schema, where):
    for name, beyond in (
        ("minItems", len(value) < schema.get("minItems", 0)),
        ("maxItems", len(value) > schema.get("maxItems", len(value))),
    ):
        if beyond:
            side = "least" if name == "minItems" else "most"
            raise ApiError(400, f"{where} has {len(value)} items; it must have at {side} {schema[name]}", where)
    return [check(item, schema["items"], f"{where}[{i}]") for i, item in enumerate(value)]


def check_object(value, schema, where=""):
    properties, prefix = schema.get("properties"), f"{where}." if where else ""
    if properties is None:
        return value
    for name in value:
        if name not in properties:
            near = difflib.get_close_matches(name[:64], properties, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(properties)}"
            unknown = prefix + name[:64]  # an error is read by people
            raise ApiError(400, f"unknown field {unknown or repr(unknown)}; {hint}", unknown, "unknown_field")
    for name in schema.get("required", ()):
        if value.get(name) is None:
            raise ApiError(400, f"{prefix}{name} is missing", prefix + name, "missing_field")
    # OpenAI's clients send null for what is not set.
    return {name: check(v, properties[name], prefix + name) for name, v in value.items() if v is not None}


CHECKS = {
    "number": check_number,
    "integer": check_number,
    "string": check_string,
    "array": check_array,
    "object": check_object,
}
