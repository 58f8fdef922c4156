# An app with ids and users of its own. The login stands for yours.
import os
import secrets

from flask import Flask, abort, redirect, render_template_string, request, session

CONTRACTS = {
    42: {"title": "Lease", "document": "lease-2026", "permissions": {"alice": "read write", "bob": "read"}},
    43: {"title": "Non-disclosure agreement", "document": "nda-2025", "permissions": {"alice": "read"}},
}

app = Flask(__name__)
app.secret_key = secrets.token_hex()  # logins end with the process
app.config["SESSION_COOKIE_SAMESITE"] = "Lax"


@app.get("/")
def index():
    return render_template_string(
        """<!doctype html>{% if session.user %}<title>Contracts</title><h1>Contracts</h1><p>{{ session.user }}</p>
<ul>{% for id, contract in contracts.items() %}<li><a href="/contracts/{{ id }}">{{ contract.title }}</a>{% endfor %}</ul>
{% else %}<title>Log in</title><form method="post" action="/login"><button name="user" value="alice">Alice</button>
<button name="user" value="bob">Bob</button></form>{% endif %}""",
        contracts=CONTRACTS,
    )


@app.post("/login")
def login():
    session["user"] = "alice" if request.form["user"] == "alice" else "bob"
    return redirect("/", 303)


def opened(number):
    """Who may open a contract: for its page, and for the tokens that the page asks for."""
    user = session.get("user") or abort(401)
    contract = CONTRACTS.get(number) or abort(404)
    return user, contract, contract["permissions"].get(user) or abort(403)


@app.get("/contracts/<int:number>")
def page(number):
    _, contract, _ = opened(number)
    return render_template_string(
        r"""<!doctype html>
<title>{{ title }}</title>
<h1>{{ title }}</h1>
<p><a href="/">All contracts</a></p>
<p role="alert"></p>
<div id="viewer" style="height: 80vh"></div>
<script src="/nutrient-viewer.js"></script>
<script type="module">
	import { loadViewer } from "/viewer-session.js";
	const alert = document.querySelector("[role=alert]");
	const onError = (error) => {
		alert.textContent = error.message + " ";
		if (error.code === "login") {
			alert.insertAdjacentHTML("beforeend", '<a href="/">Log in</a>');
		}
	};
	loadViewer(NutrientViewer, { container: "#viewer" }, {
		sessionUrl: location.pathname.replace(/\/$/, "") + "/session",
		onError, // a new token is needed, and there is none
		onSession: () => alert.replaceChildren(), // there is one again
	}).catch(onError);
</script>""",
        title=contract["title"],
    )


@app.get("/contracts/<int:number>/session")
def viewer_session(number):
    user, contract, permissions = opened(number)
    return "", 204, {
        "X-Viewer-Document": contract["document"],
        "X-Viewer-Permissions": permissions,
        "X-Viewer-User": user,
    }


if __name__ == "__main__":
    app.run("127.0.0.1", int(os.environ.get("PORT", 3000)))
