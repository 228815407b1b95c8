"""The language of the page's labels, for browsers whose form of Chinese Gradio does not know."""

# Gradio knows zh-CN and zh-TW, and takes zh, zh-HK and others for English.
SCRIPT = b"""<script>
if (/^zh/i.test(navigator.language)) {
  Object.defineProperty(navigator, "language", {get: () => "zh-CN"});
  Object.defineProperty(navigator, "languages", {get: () => ["zh-CN"]});
}
</script>"""


class ChineseForAll:
    """ASGI: puts SCRIPT first in the page's head, before Gradio's own code asks for the language.

    Gradio's setting for the head would not do: it is read after that.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != "/":
            return await self.app(scope, receive, send)
        headers = [(key, value) for key, value in scope["headers"] if key != b"accept-encoding"]
        started, body = None, b""

        async def hold(message):
            nonlocal started, body
            if message["type"] == "http.response.start":
                started = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            whole = body.replace(b"<head>", b"<head>" + SCRIPT, 1)
            kept = [(key, value) for key, value in started["headers"] if key != b"content-length"]
            length = (
                started["headers"] if scope["method"] == "HEAD" else [*kept, (b"content-length", b"%d" % len(whole))]
            )
            await send({**started, "headers": length})
            await send({"type": "http.response.body", "body": whole})

        await self.app({**scope, "headers": headers}, receive, hold)
