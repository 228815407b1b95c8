"""The page's texts (i18n.toml) in the visitor's language: labels, which the browser picks, and handlers' messages."""

import tomllib
from pathlib import Path

TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
LANGUAGES = ("zh", "en")
PREFIX = "minigpt_"  # of our keys in the browser, where Gradio has keys of its own
SCRIPT_PREFIX = "js_"  # of the texts that page.js shows
COOKIE = "minigpt_language"  # what the visitor has chosen; without it, the browser's language counts
# Runs before Gradio reads the locale and the theme. Gradio's frontend knows zh-CN and zh-TW only, and would show
# English for zh, zh-HK and others. A chosen theme is given to it as ?__theme=…, its own way.
HEAD_SCRIPT = b"""<script>
{
  const chosen = document.cookie.match(/minigpt_language=(zh|en)/)?.[1];
  const language = (chosen ?? (/^zh/i.test(navigator.language) ? "zh" : "")) === "zh" ? "zh-CN" : chosen;
  if (language) {
    Object.defineProperty(navigator, "language", {get: () => language});
    Object.defineProperty(navigator, "languages", {get: () => [language]});
  }
  let theme = null;
  try { theme = localStorage.getItem("minigpt-theme"); } catch {}
  const address = new URL(location);
  if (theme === "dark" || theme === "light") {
    address.searchParams.set("__theme", theme);
    history.replaceState(null, "", address);
  }
}
</script>"""


def fill_text(key, language, **values):
    """The text of a key in a language of LANGUAGES, with its placeholders filled."""
    return TEXTS[key][LANGUAGES.index(language)].format(**values)


def translations():
    """{locale: {key: text}} for the browser, which uses the table of its locale, or English."""
    tables = {language: {PREFIX + key: pair[i] for key, pair in TEXTS.items()} for i, language in enumerate(LANGUAGES)}
    return {"en": tables["en"], "zh-CN": tables["zh"]}


def script_texts():
    """{language of LANGUAGES: {key: text}} of the texts that page.js shows."""
    keys = [key for key in TEXTS if key.startswith(SCRIPT_PREFIX)]
    return {
        language: {key.removeprefix(SCRIPT_PREFIX): TEXTS[key][i] for key in keys}
        for i, language in enumerate(LANGUAGES)
    }


def language_of(header):
    """The language for an Accept-Language header: "zh" if its first entry is Chinese, else "en"."""
    first = (header or "").split(",")[0].strip().lower()
    return "zh" if first == "zh" or first.startswith("zh-") else "en"


def language_for(request):
    """The language for a request (gr.Request; None: English): the one that its visitor chose, else its header's."""
    if request is None:
        return "en"
    chosen = request.cookies.get(COOKIE)
    return chosen if chosen in LANGUAGES else language_of(request.headers.get("accept-language"))


class PageHead:
    """ASGI middleware that inserts HEAD_SCRIPT at the start of the page's head.

    Gradio's own option for the head is not enough: it is applied after Gradio has read both.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != "/":
            return await self.app(scope, receive, send)

        async def send_with_script(message):
            if message["type"] == "http.response.start":  # the length changes; without it the body is sent in chunks
                message["headers"] = [(k, v) for k, v in message["headers"] if k != b"content-length"]
            else:
                message["body"] = message.get("body", b"").replace(b"<head>", b"<head>" + HEAD_SCRIPT, 1)
            await send(message)

        # A compressed body could not be searched.
        headers = [(key, value) for key, value in scope["headers"] if key != b"accept-encoding"]
        await self.app({**scope, "headers": headers}, receive, send_with_script)
