"""What apps see of the token's header and cookie: a WSGI and an ASGI app."""

import base64
import http.cookies
import json

import webob
import werkzeug.wrappers


def encode(value):
    return base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()


def cookies(line):
    """The values that the standard library's parser finds."""
    try:
        parsed = http.cookies.SimpleCookie(line)
    except http.cookies.CookieError:
        return []
    return [parsed["vs"].value] if "vs" in parsed else []


def wsgi(environ, start_response):
    header = [environ[name] for name in environ if name == "HTTP_X_VIEWER_SESSION"]
    cookie = cookies(environ.get("HTTP_COOKIE", ""))
    for request in (webob.Request(environ), werkzeug.wrappers.Request(environ)):
        value = request.cookies.get("vs")
        if value is not None:
            cookie.append(value)
    body = json.dumps({"header": [encode(v) for v in header], "cookie": [encode(v) for v in cookie]}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    header, lines = [], []
    for name, value in scope["headers"]:
        if name.decode("latin-1").replace("_", "-").replace(".", "-").lower() == "x-viewer-session":
            header.append(value.decode("latin-1"))
        if name == b"cookie":
            lines.append(value.decode("latin-1"))
    body = json.dumps({
        "protocol": scope["http_version"],
        "header": [encode(v) for v in header],
        "cookie": [encode(v) for v in cookies("; ".join(lines))],
    }).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
