"""The page of `bench.py gpu`: its figures as Markdown. What is missing says why."""

from minigpt.evaluation.tables import markdown_table

# What stands in docs/gpu.md until a GPU has been measured.
NO_FIGURES = "**No figure of a GPU stands here yet: nobody has run the command on one.**"
TRAINING_ROWS = {
    "useful tokens a second": ("tokens_per_second", "{:,.0f}"),
    "MFU": ("mfu", "{:.1%}"),
    "seconds a step": ("seconds_per_step", "{:.3f}"),
    "tokens a step": ("tokens_per_step", "{:,.0f}"),
    "passes a step": ("micro_batches_per_step", "{}"),
    "padding": ("padding_share", "{:.1%}"),
    "peak memory, GB": ("peak_memory_gb", "{:.2f}"),
    "host, ms a pass": ("host_ms_per_micro_batch", "{:.1f}"),
    "all, ms a pass": ("ms_per_micro_batch", "{:.1f}"),
    "launches a pass": ("launches_per_micro_batch", "{:.0f}"),
    "waits a pass": ("waits_per_micro_batch", "{:.0f}"),
    "graphs": ("graphs", "{}"),
    "graph breaks": ("graph_breaks", "{}"),
    "seconds of compiling": ("compile_seconds", "{:.0f}"),
}


def why_missing(figure):
    """The reason where a figure is missing, else None."""
    return figure["missing"] if isinstance(figure, dict) and "missing" in figure else None


def shown(figure, form="{}"):
    """A figure as text, by a format; the reason in brackets where it is missing."""
    reason = why_missing(figure)
    return f"({reason})" if reason is not None else form.format(figure)


def gpu_page(values):
    """Markdown of the values (dict) that `bench.py gpu` writes as JSON, as far as they are there."""
    machine = values["machine"]
    about = ", ".join(f"{name} {shown(value)}" for name, value in machine.items() if name not in ("gpu", "device"))
    lines = [f"{machine['gpu']}; {about}."]
    if values["quick"]:
        lines.append("With `--quick`: everything in miniature, so no figure means anything.")
    lines.append(checks_table(values["checks"]))
    for name, part in values["parts"].items():
        lines += [f"### {name[0].upper()}{name[1:]}", part_text(name, part)]
    if values["errors"]:
        lines += ["### Errors", "\n".join(f"- {each['at']}: {each['error']}" for each in values["errors"])]
    return "\n\n".join(line for line in lines if line)


def checks_table(checks):
    """Table of the checks, "" without any."""
    rows = [
        [each["check"], f"{each['error']:.2g}", f"{each['tolerance']:g}", "yes" if each["passed"] else "**no**"]
        for each in checks
    ]
    return markdown_table(["check", "relative error", "at most", "passed"], rows) if rows else ""


def part_text(name, part):
    """The figures of one part, a dict as in the JSON."""
    figures = part["figures"]
    if (reason := why_missing(figures) or part.get("why")) is not None and not set(figures) - {"missing"}:
        return f"Left out: {reason}."
    table = {
        "checks": plain_table,
        "pretraining": gpu_training_table,
        "fine-tuning": gpu_training_table,
        "generation": gpu_generation_table,
        "memory": memory_table,
    }.get(name, plain_table)
    cut_off = f" Then it ended: {part['why']}." if "why" in part else ""
    return f"{table(figures)}\n\nState: {part['state']}.{cut_off}"


def plain_table(figures):
    """Table of the names of figures and their values."""
    rows = [
        [name.replace("_", " "), shown(f, "{:.3f}" if isinstance(f, float) else "{}")] for name, f in figures.items()
    ]
    return markdown_table(["figure", ""], rows)


def gpu_training_table(figures):
    """Table of the ways of training, a column each, and of their ratios."""
    ways = {name: figure for name, figure in figures.items() if isinstance(figure, dict) and "steps" in figure}
    left_out = {name: reason for name, figure in figures.items() if (reason := why_missing(figure)) is not None}
    rows = [
        [name, *(shown(figure[key], form) if key in figure else "" for figure in ways.values())]
        for name, (key, form) in TRAINING_ROWS.items()
    ]
    ratios = {name: figure for name, figure in figures.items() if isinstance(figure, float)}
    texts = [markdown_table(["", *ways], rows)] if ways else []
    texts += [f"{name}: {ratio:.2f}" for name, ratio in ratios.items()]
    texts += [f"{name}: left out ({reason})" for name, reason in left_out.items()]
    told = ("number of parameters", "passes of")
    said = {}  # {line: the ways that said it}
    for way, figure in ways.items():
        for line in figure["said"]:
            if line.startswith(told):
                said.setdefault(line, []).append(way)
    texts += [f"{', '.join(names)}: {line}" for line, names in said.items()]
    return "\n\n".join(texts)


def gpu_generation_table(figures):
    """Table of the ways of generating, a row for each number of streams."""
    rows, texts = [], []
    for way, figure in figures.items():
        if (reason := why_missing(figure)) is not None:
            texts.append(f"{way}: left out ({reason})")
            continue
        over = figure.get("over_hugging_face", {})
        for streams in (key for key in figure if key.isdigit()):
            rate, first = figure[streams]["tokens_per_second"], figure[streams]["first_token_ms"]
            ratio = f"{over[streams]:.2f}" if streams in over else ""
            calls = [
                shown(figure[f"{kind}_per_token"], "{:.1f}") if streams == "1" and f"{kind}_per_token" in figure else ""
                for kind in ("launches", "waits")
            ]
            rows.append([way, streams, f"{rate:,.1f}", f"{first:.1f}", ratio, *calls])
    names = ["way", "streams", "tokens/s", "first token, ms", "over Hugging Face", "launches a token", "waits a token"]
    return "\n\n".join([*([markdown_table(names, rows)] if rows else []), *texts])


def memory_table(figures):
    """Table of the sizes of memory that were played."""
    rows = []
    for name, figure in figures.items():
        if (reason := why_missing(figure)) is not None:
            rows.append([name, f"left out ({reason})", "", "", ""])
        elif figure["trains"]:
            numbers = f"{figure['peak_memory_gb']:.2f}", f"{figure['tokens_per_second']:,.0f}"
            passes = f"{figure['micro_batches_per_step']} of {figure['positions_per_micro_batch']:,}"
            rows.append([name, "yes", passes, *numbers])
        else:
            rows.append([name, f"no ({figure['why']})", "", "", ""])
    return markdown_table(["memory", "trains", "passes of tokens", "peak, GB", "tokens/s"], rows)
