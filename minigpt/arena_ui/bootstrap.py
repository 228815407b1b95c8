"""Imports Gradio with the environment that it needs at import time.

Telemetry is off. Gradio's files are in a temporary folder of this process. Proxy variables other than HTTP (such as
SOCKS) are hidden during the import: Gradio creates an HTTP client, which would raise on them.
"""

import os
import tempfile

GRADIO_FOLDER = tempfile.TemporaryDirectory(prefix="minigpt-page-", ignore_cleanup_errors=True)
PROXY_VARIABLES = ("all_proxy", "http_proxy", "https_proxy")

os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_TEMP_DIR=GRADIO_FOLDER.name)
hidden = {
    name: os.environ.pop(name)
    for name, value in list(os.environ.items())
    if name.lower() in PROXY_VARIABLES and not value.startswith(("http://", "https://"))
}
try:
    import gradio  # noqa: F401
finally:
    os.environ.update(hidden)
