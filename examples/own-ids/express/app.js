// An app with ids and users of its own. The login stands for yours.
import { randomUUID } from "node:crypto";
import express from "express";

const contracts = {
	42: { title: "Lease", document: "lease-2026", permissions: { alice: "read write", bob: "read" } },
	43: { title: "Non-disclosure agreement", document: "nda-2025", permissions: { alice: "read" } },
};
const logins = new Map(); // user by cookie

const app = express();
app.disable("x-powered-by");
app.use(express.urlencoded({ extended: false }));
app.use((req, res, next) => {
	req.user = logins.get(/(?:^|; )login=([^;]+)/.exec(req.get("Cookie") ?? "")?.[1]);
	next();
});

app.get("/", (req, res) => {
	res.send(req.user
		? `<!doctype html><title>Contracts</title><h1>Contracts</h1><p>${req.user}</p><ul>${
			Object.entries(contracts).map(([id, { title }]) => `<li><a href="/contracts/${id}">${title}</a>`).join("")}</ul>`
		: `<!doctype html><title>Log in</title><form method="post" action="/login"><button name="user" value="alice">Alice</button>
			<button name="user" value="bob">Bob</button></form>`);
});

app.post("/login", (req, res) => {
	const login = randomUUID();
	logins.set(login, req.body.user === "alice" ? "alice" : "bob");
	res.cookie("login", login, { httpOnly: true, sameSite: "lax" }).redirect(303, "/");
});

// Who may open a contract: for its page, and for the tokens that the page asks for.
app.use("/contracts/:id", (req, res, next) => {
	req.contract = contracts[req.params.id];
	req.permissions = req.contract?.permissions[req.user];
	if (!req.user) return res.sendStatus(401);
	if (!req.contract) return res.sendStatus(404);
	if (!req.permissions) return res.sendStatus(403);
	next();
});

app.get("/contracts/:id", (req, res) => {
	res.send(`<!doctype html>
<title>${req.contract.title}</title>
<h1>${req.contract.title}</h1>
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
		sessionUrl: location.pathname.replace(/\\/$/, "") + "/session",
		onError, // a new token is needed, and there is none
		onSession: () => alert.replaceChildren(), // there is one again
	}).catch(onError);
</script>`);
});

app.get("/contracts/:id/session", (req, res) => {
	res.set({
		"X-Viewer-Document": req.contract.document,
		"X-Viewer-Permissions": req.permissions,
		"X-Viewer-User": req.user,
	}).sendStatus(204);
});

app.listen(process.env.PORT ?? 3000, "127.0.0.1");
